"""The rows of turns that were accepted, and that mem0 may not find yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, TypeVar, cast

from retinue_memory.clock import DAY_US, now_us
from retinue_memory.database.base import Connection, Database, Operation
from retinue_memory.database.sqlite import SQLiteDatabase, named_queries, path_of
from retinue_memory.messages import Message, message_json, message_of

from .service import Entity

T = TypeVar("T")
State = Literal["new", "sent", "pending", "done", "failed"]

_FOLDER = files("retinue_memory.mem0")
_SQL = named_queries(_FOLDER.joinpath("turns.sql").read_text(encoding="utf-8"))
_IN_MEMORY = ":memory:"
_KEEP_DONE_DAYS = 30  # a turn that comes again within these is recognised


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn's messages on their way to mem0. The columns of `mem0_turns` explain the fields."""

    scope: str
    """`Scope.key`."""
    id: str
    entity: Entity
    messages: Sequence[Message]
    about: Mapping[str, Any]
    """See `records.metadata_of`."""
    infer: bool
    """Let mem0's model extract facts; False: keep each message as it is."""
    state: State = "sent"
    void: bool = False
    """Erased or forgotten since: what mem0 makes of it is to be deleted."""
    event: str | None = None
    tries: int = 0
    failures: int = 0
    since: int = 0
    """When the state was entered, in microseconds."""

    @property
    def said(self) -> str:
        """The text of all messages."""
        return "\n".join(message.content for message in self.messages)

    @property
    def key(self) -> tuple[str, str]:
        """Unique within a memory."""
        return self.scope, self.id


class Turns:
    """The rows of one memory, in a database that others may share; None: in this process only.

    `grace_s`: a turn whose request has no known outcome is due after so many seconds.
    """

    def __init__(self, database: Database | str | None, space: str, grace_s: float) -> None:
        self._grace_s = grace_s
        self._owned = database is None or isinstance(database, str)
        self._space = space
        self._one_connection = database is None
        """The rows are in memory, which only the writer's connection sees."""
        self._database: Database
        if database is None:
            self._database = SQLiteDatabase(_IN_MEMORY)
        elif isinstance(database, str):
            self._database = SQLiteDatabase(path_of(database))
        else:
            self._database = database

    def open(self) -> None:
        """Create or upgrade the tables, and delete old rows. Blocks. Raises StoreError."""
        self._database.migrate("mem0", _FOLDER)
        before = now_us() - _KEEP_DONE_DAYS * DAY_US
        self._database.write_now(lambda db: db.execute(_SQL["drop_old"], {"space": self._space, "before": before}))

    def close(self) -> None:
        if self._owned:
            self._database.close()

    async def accept(self, turn: Turn, *, unless: Operation[bool]) -> tuple[Turn, bool] | None:
        """Store a turn that is about to be sent.

        Returns the turn and True, or if its id is stored already, the stored turn and False. Returns None, and stores nothing,
        if `unless` holds in the same transaction.
        """

        def write(db: Connection) -> tuple[Turn, bool] | None:
            if unless(db):
                return None
            values = self._key(turn) | {
                "entity_field": turn.entity.field,
                "entity_id": turn.entity.id,
                "messages": json.dumps([message_json(message) for message in turn.messages]),
                "about": json.dumps(turn.about),
                "infer": turn.infer,
                "now": now_us(),
                "due": _in(self._grace_s),
            }
            if db.execute(_SQL["accept"], values).rowcount:
                return turn, True
            return _turn(_rows(db, "one", self._key(turn))[0]), False

        return await self._database.write(write)

    async def of_scope(self, scope: str) -> list[Turn]:
        """The turns of a scope that mem0 may not find yet, and the void ones, in the order in which they were accepted."""
        return await self._read(lambda db: list(map(_turn, _rows(db, "of_scope", self._of(scope)))))

    async def due(self, limit: int = 64) -> tuple[list[Turn], float | None]:
        """The turns that are due, and in how many seconds the next one will be. None: there is no other."""

        def read(db: Connection) -> tuple[list[Turn], float | None]:
            values = {"space": self._space, "now": now_us(), "limit": limit}
            later = db.execute(_SQL["next_due"], values).fetchone()[0]
            seconds = None if later is None else max(0.0, (later - values["now"]) / 1e6)
            return list(map(_turn, _rows(db, "due", values))), seconds

        return await self._read(read)

    async def waiting(self, scope: str | None) -> int:
        """How many turns mem0 is working on or has not taken: of a scope, or of all (None)."""
        return await self._read(
            lambda db: int(db.execute(_SQL["waiting"], {"space": self._space, "scope": scope}).fetchone()[0])
        )

    async def advance(
        self, turn: Turn, state: State, *, seconds: float = 0.0, event: str | None = None, failed: bool = False
    ) -> bool:
        """Set a turn's state, and make it due in `seconds`. `failed`: its event failed; mem0 is not asked to infer again.

        Returns whether the turn is void, or was deleted.
        """
        values = self._key(turn) | {
            "state": state,
            "event": event,
            "infer": turn.infer and not failed,
            "failures": turn.failures + failed,
            "now": now_us(),
            "due": _in(seconds),
        }
        rows = await self._database.write(lambda db: db.execute(_SQL["advance"], values).fetchall())
        return not rows or bool(rows[0][0])

    async def again(self, turn: Turn, seconds: float) -> None:
        """Make a turn due in `seconds`, with the same state."""
        await self._execute("again", self._key(turn) | {"due": _in(seconds)})

    async def make_void(self, scope: str, turn: str | None = None) -> None:
        """Void one turn, or all of a scope (None), and delete its text."""
        await self._execute("make_void", self._of(scope) | {"turn": turn})

    async def drop(self, turn: Turn) -> None:
        """Delete a turn."""
        await self._execute("drop", self._key(turn))

    async def drop_settled(self, scope: str) -> int:
        """Delete the turns of a scope that mem0 is not working on. Returns how many there were."""
        return await self._execute("drop_settled", self._of(scope))

    async def count(self, scope: str) -> int:
        """How many turns of a scope are stored."""
        return await self._read(lambda db: int(db.execute(_SQL["count"], self._of(scope)).fetchone()[0]))

    async def scrub(self, deleted: int) -> str | None:
        """Remove the bytes of rows that were deleted, now or before, from the file. Returns what may still hold them, or None."""
        if self._one_connection or (not deleted and self._database.scrubbed):
            return None
        return await self._database.scrub()

    def _of(self, scope: str) -> dict[str, Any]:
        return {"space": self._space, "scope": scope}

    def _key(self, turn: Turn) -> dict[str, Any]:
        return self._of(turn.scope) | {"turn": turn.id}

    async def _read(self, operation: Operation[T]) -> T:
        return await (self._database.write if self._one_connection else self._database.read)(operation)

    async def _execute(self, query: str, values: Mapping[str, Any]) -> int:
        return await self._database.write(lambda db: db.execute(_SQL[query], values).rowcount)


def _in(seconds: float) -> int:
    return now_us() + int(seconds * 1_000_000)


def _rows(db: Connection, query: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    cursor = db.execute(_SQL[query], values)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _turn(row: Mapping[str, Any]) -> Turn:
    field = cast(Literal["user_id", "run_id"], row["entity_field"])
    return Turn(
        scope=row["scope"],
        id=row["turn"],
        entity=Entity(field, row["entity_id"]),
        messages=[message_of(value) for value in json.loads(row["messages"])],
        about=json.loads(row["about"]),
        infer=bool(row["infer"]),
        state=row["state"],
        void=bool(row["void"]),
        event=row["event"],
        tries=row["tries"],
        failures=row["failures"],
        since=row["since"],
    )
