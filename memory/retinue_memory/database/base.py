"""The contracts of a database: what an operation sees of a transaction, and how operations are run.

An operation is a plain synchronous function whose last argument is a `Connection`. Any `Database` can run it. If the dialects
write a statement differently, the caller chooses the statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Params = Mapping[str, Any] | Sequence[Any]
"""The values of a statement's placeholders: by name (`:name`) or in order (`?`)."""


class Cursor(Protocol):
    """The result of one statement."""

    @property
    def description(self) -> Sequence[Any] | None:
        """The columns of the result, each a sequence whose first item is the column's name."""
        ...

    @property
    def rowcount(self) -> int:
        """The number of rows that an INSERT, UPDATE or DELETE changed."""
        ...

    def fetchone(self) -> Any:
        """The next row as a tuple, or None if there is no more."""
        ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """One transaction. It ends with the operation: committed if that returns, rolled back if it raises."""

    def execute(self, sql: str, parameters: Params = (), /) -> Cursor: ...

    def executemany(self, sql: str, parameters: Iterable[Params], /) -> Cursor: ...


Operation = Callable[[Connection], T]


@dataclass(slots=True, eq=False)
class Alongside:
    """An operation that another write to the same database takes into its transaction.

    An outbox passes it to a memory that keeps its rows in the outbox's database: the memory's write and the deletion of the
    outbox row are then one commit. `committed` tells the outbox whether that happened; if not, it deletes the row itself.
    """

    operation: Callable[[Connection], None]
    committed: bool = False


class Database(Protocol):
    """Runs operations, each in a transaction. Raises StoreError if the database fails; passes on what an operation raises.

    `read` and `write` may be awaited on any event loop; `read_now` and `write_now` block the calling thread. An operation
    runs no other operation.
    """

    async def write(self, operation: Operation[T], *, checked: bool = False, flush: bool = True) -> T:
        """Run `operation` and return its result once the commit is durable.

        `checked`: the operation raises only before its first write, so it needs no savepoint. `flush=False`: the operation
        carries out what a durable row asks for and deletes that row, so its commit may become durable with a later one.
        """
        ...

    def write_now(self, operation: Operation[T]) -> T: ...

    async def read(self, operation: Operation[T]) -> T:
        """Run `operation` on one snapshot, which includes every write acknowledged before."""
        ...

    def read_now(self, operation: Operation[T]) -> T: ...

    async def scrub(self) -> str | None:
        """Remove the bytes of deleted rows from the files. Returns a description of what may still hold them, or None."""
        ...

    @property
    def scrubbed(self) -> bool:
        """Whether the last `scrub` succeeded. False before the first: an earlier process may have left something."""
        ...

    def migrate(self, component: str, folder: Traversable) -> int:
        """Apply the migrations of `folder` that `component` lacks. Returns its version. Blocks; raises StoreError."""
        ...

    def acquire_server_lock(self) -> None:
        """Reserve a database that only one server may use for this process, until it is closed. Blocks.

        Raises StoreError if another process has it. Does nothing if the database may be shared.
        """
        ...

    async def aclose(self) -> None:
        """Finish waiting writes and close all connections."""
        ...

    def close(self) -> None:
        """`aclose` for threads without an event loop."""
        ...
