"""The rows of turns that were accepted, and that mem0 may not find yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal, TypeVar, cast

from retinue_memory.clock import DAY_US, now_us
from retinue_memory.database.base import Connection, Database, Operation
from retinue_memory.database.migrations import named_queries
from retinue_memory.database.url import IN_MEMORY_URL, open_database
from retinue_memory.messages import Message, message_json, message_of

from .service import Entity

T = TypeVar("T")
State = Literal["new", "sent", "pending", "done", "failed"]

_FOLDER = files("retinue_memory.mem0")
_SQL = named_queries(_FOLDER.joinpath("turns.sql").read_text(encoding="utf-8"))
_KEEP_DONE_DAYS = 30  # a turn that comes again within these is recognised


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn's messages on their way to mem0. The columns of `mem0_turns` explain the fields."""

    scope: str
    id: str
    entity: Entity
    messages: Sequence[Message]
    about: Mapping[str, Any]
    infer: bool
    state: State = "sent"
    void: bool = False
    event: str | None = None
    tries: int = 0
    failures: int = 0
    since: int = 0
    fresh: bool = False
    """Whether it was stored just now, and nothing was sent before."""
    awaited: bool = False
    """Whether a caller waits for the request, and learns from its error if mem0 refuses the turn."""

    @property
    def said(self) -> str:
        return "\n".join(message.content for message in self.messages)

    @property
    def key(self) -> tuple[str, str]:
        return self.scope, self.id


class Turns:
    """The rows of one memory, in a database that others may share; None: in this process only.

    `grace_s`: a turn whose request has no known outcome is due after so many seconds.
    """

    def __init__(self, database: Database | str | None, space: str, grace_s: float) -> None:
        self._grace_s = grace_s
        self._owned = database is None or isinstance(database, str)
        self._space = space
        database = IN_MEMORY_URL if database is None else database
        self._database = open_database(database) if isinstance(database, str) else database

    def open(self) -> None:
        """Create or upgrade the tables, and delete old rows. Blocks. Raises StoreError."""
        self._database.migrate("mem0", _FOLDER)
        before = now_us() - _KEEP_DONE_DAYS * DAY_US
        self._database.write_now(lambda db: db.execute(_SQL["drop_old"], {"space": self._space, "before": before}))

    def close(self) -> None:
        if self._owned:
            self._database.close()

    async def accept(
        self, turn: Turn, *, unless: Operation[bool], queue: bool = False, is_behind: bool = False
    ) -> Turn | None:
        """Store a turn that is about to be sent ("sent"), and return it as `fresh`; or return the turn that has its id already.

        Returns None if `unless` holds in the same transaction. `queue`: if an earlier turn of the scope waits to be sent, or
        if it `is_behind` one that is being sent, it is stored as "new", to be sent after that one.
        """

        def write(db: Connection) -> Turn | None:
            if unless(db):
                return None
            waits = queue and (is_behind or db.execute(_SQL["has_new"], self._of(turn.scope)).fetchone() is not None)
            values = self._key(turn) | {
                "entity_field": turn.entity.field,
                "entity_id": turn.entity.id,
                "messages": json.dumps([message_json(message) for message in turn.messages]),
                "about": json.dumps(turn.about),
                "infer": turn.infer,
                "state": "new" if waits else "sent",
                "now": now_us(),
                "due": now_us() if waits else _in(self._grace_s),
            }
            if db.execute(_SQL["accept"], values).rowcount:
                return replace(turn, fresh=True, state="new" if waits else "sent")
            return _turn(_rows(db, "one", self._key(turn))[0])

        return await self._database.write(write)

    async def of_scope(self, scope: str) -> list[Turn]:
        """The turns of a scope that mem0 may not find yet, and the void ones, in the order in which they were accepted."""
        return await self._database.read(lambda db: list(map(_turn, _rows(db, "of_scope", self._of(scope)))))

    async def due(self, limit: int = 64) -> tuple[list[Turn], float | None]:
        """The turns that are due, and in how many seconds the next one will be. None: there is no other."""

        def read(db: Connection) -> tuple[list[Turn], float | None]:
            values = {"space": self._space, "now": now_us(), "limit": limit}
            later = db.execute(_SQL["next_due"], values).fetchone()[0]
            seconds = None if later is None else max(0.0, (later - values["now"]) / 1e6)
            return list(map(_turn, _rows(db, "due", values))), seconds

        return await self._database.read(read)

    async def waiting(self, scope: str | None) -> int:
        """How many turns mem0 is working on or has not taken: of a scope, or of all (None)."""
        return await self._database.read(
            lambda db: int(db.execute(_SQL["waiting"], {"space": self._space, "scope": scope}).fetchone()[0])
        )

    async def advance(
        self, turn: Turn, state: State, *, seconds: float = 0.0, event: str | None = None, failed: bool = False
    ) -> bool:
        """Set its state, to be looked at in `seconds`; a `failed` event is counted, and the model not asked again. Whether
        it is void; one that is gone is, too."""
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
        await self._execute("drop", self._key(turn))

    async def drop_settled(self, scope: str) -> int:
        """Delete the turns of a scope that mem0 is not working on. Returns how many there were."""
        return await self._execute("drop_settled", self._of(scope))

    async def count(self, scope: str) -> int:
        return await self._database.read(lambda db: int(db.execute(_SQL["count"], self._of(scope)).fetchone()[0]))

    async def scrub(self, deleted: int) -> str | None:
        """Remove the bytes of rows that were deleted, now or before, from the file. Returns what may still hold them, or None."""
        if not deleted and self._database.scrubbed:
            return None
        return await self._database.scrub()

    def _of(self, scope: str) -> dict[str, Any]:
        return {"space": self._space, "scope": scope}

    def _key(self, turn: Turn) -> dict[str, Any]:
        return self._of(turn.scope) | {"turn": turn.id}

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
