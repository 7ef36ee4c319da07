"""The items that `get_all` of mem0's library, server or cloud returns: parsed and checked. mem0 need not be installed.

An item is a JSON object with `id` and `memory` (the text). `user_id`, `agent_id` and `run_id` name the owner. `created_at`,
`updated_at` and `expiration_date` are ISO 8601, UTC without a zone. `role` and `actor_id` name who said it, if mem0 stored a
message as it was. `categories` are mem0's. `metadata` is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, cast

from .memory import MemoryKind, Scope

_LISTS = ("results", "memories")
_PREFERENCES = "preference"


@dataclass(frozen=True, slots=True)
class Item:
    """One memory of mem0. Times carry a zone; None: the item has none."""

    id: str
    text: str
    user: str | None
    agent: str | None
    run: str | None
    role: Literal["user", "assistant", "system"]
    speaker: str
    kind: MemoryKind
    created_at: datetime | None
    updated_at: datetime | None
    expires_at: datetime | None

    def belongs_to(self, scope: Scope) -> bool:
        """Whether it belongs to this user or session. An item that names no owner belongs to any."""
        if (self.user, self.agent, self.run) == (None, None, None):
            return True
        if scope.owner == "user":
            return self.user == scope.id
        return self.user is None and self.run == scope.id

    @property
    def owner(self) -> str:
        """The owner, in words."""
        named = (("user", self.user), ("agent", self.agent), ("run", self.run))
        return next((f"{what} {id_!r}" for what, id_ in named if id_ is not None), "nobody")


def items_of(document: Any) -> list[Any]:
    """The items of a result of `get_all`: a list, or an object with a list of `results`. Raises ValueError for any other."""
    listed: Any = document
    if isinstance(document, Mapping):
        held = cast("Mapping[str, Any]", document)
        listed = next((held[name] for name in _LISTS if name in held), [held] if is_item(held) else None)
    if not isinstance(listed, list):
        raise ValueError('expected a list of memories, or an object with "results"')
    return [*listed]


def is_item(value: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the keys of an item."""
    return "id" in value and "memory" in value


def read_item(value: object, place: str) -> Item:
    """Parse an item. Raises ValueError, which names its place and the problem."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: {value!r:.80} is not an object")
    fields = _Fields(cast("Mapping[str, Any]", value), place)
    text, id_ = fields.text("memory"), fields.text("id")
    if not text or not text.strip() or not id_:
        raise ValueError(f"{place}: {'memory' if id_ else 'id'} is missing or empty")
    role = fields.text("role")
    return Item(
        id=id_,
        text=text,
        user=fields.text("user_id"),
        agent=fields.text("agent_id"),
        run=fields.text("run_id"),
        role="user" if role == "user" else "assistant" if role == "assistant" else "system",
        speaker=fields.text("actor_id") or "",
        kind=fields.kind(),
        created_at=fields.moment("created_at"),
        updated_at=fields.moment("updated_at"),
        expires_at=fields.end("expiration_date"),
    )


class _Fields:
    """The fields of an item by name; null is like a missing one."""

    def __init__(self, value: Mapping[str, Any], place: str) -> None:
        self._value = value
        self._place = place

    def text(self, name: str) -> str | None:
        found = self._value.get(name)
        if found is not None and not isinstance(found, str):
            raise ValueError(f"{self._place}: {name} is {found!r:.80}: expected a text")
        return found

    def moment(self, name: str) -> datetime | None:
        found = self.text(name)
        if found is None:
            return None
        try:
            moment = datetime.fromisoformat(found)
            return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValueError(
                f"{self._place}: {name} is {found!r:.80}: expected a time like 2026-01-31T12:00:00Z"
            ) from None

    def end(self, name: str) -> datetime | None:
        """The end of a day, as an item still holds on the day on which it expires. None for the last day of all."""
        found = self.text(name)
        if found is None:
            return None
        try:
            day = date.fromisoformat(found)
        except ValueError:
            raise ValueError(f"{self._place}: {name} is {found!r:.80}: expected a day like 2026-01-31") from None
        return None if day == date.max else datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)

    def kind(self) -> MemoryKind:
        found: Any = self._value.get("categories") or []
        if not isinstance(found, list):
            raise ValueError(f"{self._place}: categories is {found!r:.80}: expected a list")
        categories: list[Any] = [*found]
        liked = any(_PREFERENCES in str(category).casefold() for category in categories)
        return MemoryKind.PREFERENCE if liked else MemoryKind.ENTITY
