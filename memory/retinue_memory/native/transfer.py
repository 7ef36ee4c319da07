"""Export of a scope's memories as JSON objects, and import of those and of mem0's items.

The first object is the header, `{"format": "retinue-memory", "version": 1}`. Each other one is a memory with its sources and
earlier versions, in the order of their insertion. Times are microseconds since the epoch, UTC; vectors are the bytes of the
database in base64. Nothing is lost on the way.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any

from retinue_memory.clock import now, to_us
from retinue_memory.database.base import Connection
from retinue_memory.mem0_items import Item, is_item, read_item
from retinue_memory.memory import MemoryKind, Scope
from retinue_memory.text import storable

from . import injection, management_rows
from .rows import SQL as ROWS_SQL
from .rows import (
    Change,
    content_hash,
    json_list,
    key_of,
    random_hash,
)

HEADER: Mapping[str, Any] = {"format": "retinue-memory", "version": 1}
PAGE = 100

_TEXT, _INT, _FLAG = (str,), (int,), (bool,)
_MAYBE_TEXT, _MAYBE_INT = (str, type(None)), (int, type(None))
_MEMORY: Mapping[str, tuple[type, ...]] = {
    "id": _TEXT,
    "kind": _TEXT,
    "role": _TEXT,
    "speaker": _TEXT,
    "content": _TEXT,
    "session_id": _TEXT,
    "created_at": _INT,
    "said_at": _INT,
    "valid_from": _MAYBE_INT,
    "valid_to": _MAYBE_INT,
    "superseded_by": _MAYBE_TEXT,
    "pinned": _FLAG,
    "expires_at": _MAYBE_INT,
    "quarantined": _MAYBE_TEXT,
    "revision": _INT,
    "embedder": _MAYBE_TEXT,
    "vector": _MAYBE_TEXT,
    "tokens": _MAYBE_TEXT,
}
_SOURCE: Mapping[str, tuple[type, ...]] = {
    "message_id": _TEXT,
    "said_at": _INT,
    "turn_id": _MAYBE_TEXT,
    "position": _INT,
}
_REVISION: Mapping[str, tuple[type, ...]] = {"revision": _INT, "kind": _TEXT, "content": _TEXT, "replaced_at": _INT}


def read_page(db: Connection, scope: Scope, after: int) -> tuple[list[dict[str, Any]], int]:
    """The next memories after row `after`, and the last row of the page (`after` if there are no more)."""
    rows = db.execute(management_rows.SQL["everything"], key_of(scope) | {"after": after, "limit": PAGE}).fetchall()
    chosen = key_of(scope) | {"seqs": json_list(row[0] for row in rows)}
    sources: dict[int, list[dict[str, Any]]] = {}
    for seq, *values in db.execute(management_rows.SQL["all_sources"], chosen):
        sources.setdefault(seq, []).append(dict(zip(_SOURCE, values, strict=True)))
    revisions: dict[int, list[dict[str, Any]]] = {}
    for seq, *values in db.execute(management_rows.SQL["revisions"], chosen):
        revisions.setdefault(seq, []).append(dict(zip(_REVISION, values, strict=True)))
    page: list[dict[str, Any]] = []
    for seq, *values in rows:
        memory = dict(zip(_MEMORY, values, strict=True))
        memory["pinned"] = bool(memory["pinned"])
        memory["vector"], memory["tokens"] = _encoded(memory["vector"]), _encoded(memory["tokens"])
        page.append({"type": "memory", **memory, "sources": sources.get(seq, []), "revisions": revisions.get(seq, [])})
    return page, rows[-1][0] if rows else after


async def pages(
    scope: Scope, values: AsyncIterator[Mapping[str, Any]], redact: Callable[[str], str]
) -> AsyncIterator[list[dict[str, Any]]]:
    """The memories to import, in pages: of an export as it comes in, of mem0's items once all of them are checked.

    Raises ValueError, naming the value, for one that is neither.
    """
    page: list[dict[str, Any]] = []
    items: list[Item] | None = None
    number = 0
    async for value in values:
        number += 1
        if not isinstance(value, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it may come from anywhere
            raise ValueError(f"value {number}: {value!r:.80} is not an object")
        if number == 1 and is_item(value):
            items = []
        if items is not None:
            items.append(_checked_owner(read_item(value, f"value {number}"), scope, number))
        elif number == 1:
            check_header(value)
        else:
            page.append(checked(value, number))
        if len(page) >= PAGE:
            yield page
            page = []
    at = now()
    rows = [from_mem0(item, at, redact) for item in sorted(items or (), key=lambda item: item.created_at or at)]
    for start in range(0, len(rows), PAGE):
        yield rows[start : start + PAGE]
    yield page


def _checked_owner(item: Item, scope: Scope, number: int) -> Item:
    if not item.belongs_to(scope):
        raise ValueError(f"value {number}: memory {item.id} is of {item.owner}, not of the {scope.owner} {scope.id!r}")
    return item


def from_mem0(item: Item, default_time: datetime, redact: Callable[[str], str]) -> dict[str, Any]:
    """An item as `checked` returns values: redacted, and quarantined if it gives orders. Vectors are computed later."""
    created = item.created_at or default_time
    text = redact(storable(item.text))
    return {
        **dict.fromkeys(_MEMORY),
        "id": storable(item.id),
        "kind": item.kind if item.role == "system" else MemoryKind.RECENT_MESSAGE,
        "role": item.role,
        "speaker": storable(item.speaker),
        "content": text,
        "session_id": storable(item.run or ""),
        "created_at": to_us(created),
        "said_at": to_us(max(created, item.updated_at or created)),
        "pinned": False,
        "expires_at": None if item.expires_at is None else to_us(item.expires_at),
        "quarantined": None if item.role == "user" else injection.orders(text, "assistant"),
        "revision": 1,
        "dimensions": None,
        "sources": [],
        "revisions": [],
    }


def write_page(values: list[dict[str, Any]], change: Change) -> int:
    """Store checked values, except those whose id, or whose words as a current memory, are stored. Returns how many were new."""
    return sum(_write(change, value) for value in values)


def checked(value: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The value with its bytes decoded. Raises ValueError, naming value `number`, if `read_page` does not return such."""
    memory = _fields(value, _MEMORY, number)
    try:
        MemoryKind(memory["kind"])
        memory["vector"], memory["tokens"] = _decoded(memory["vector"]), _decoded(memory["tokens"])
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"value {number}: {error}") from None
    vector = memory["vector"]
    if (vector is None) != (memory["embedder"] is None) or (vector is not None and (not vector or len(vector) % 4)):
        raise ValueError(
            f"value {number}: a vector without its embedder, or not of float32 numbers: expected both or neither"
        )
    memory["dimensions"] = None if vector is None else len(vector) // 4
    for name, fields in (("sources", _SOURCE), ("revisions", _REVISION)):
        listed: list[Any] | None = value.get(name)
        if not isinstance(listed, list):
            raise ValueError(f"value {number}: {name} is not a list")
        memory[name] = [_fields(one, fields, number) for one in listed]
    return memory


def check_header(value: Mapping[str, Any]) -> None:
    """Raises ValueError unless this is the header of an export that this version can import."""
    if value.get("format") != HEADER["format"]:
        raise ValueError(f'not an export of memories: the first value has no "format": "{HEADER["format"]}"')
    if value.get("version") != HEADER["version"]:
        raise ValueError(f"the export has version {value.get('version')!r}: expected {HEADER['version']}")


def _write(change: Change, memory: dict[str, Any]) -> bool:
    quarantined = memory["quarantined"] is not None
    hashed = content_hash(memory["role"], memory["speaker"], memory["content"], quarantined=quarantined)
    current = memory["valid_to"] is None
    row = change.key | memory | {"content_hash": hashed if current else random_hash(), "version": change.version}
    if change.db.execute(management_rows.SQL["is_there"], row).fetchone()[0]:
        return False
    ((seq, _),) = change.db.execute(ROWS_SQL["insert_memory"], row).fetchall()
    for source in memory["sources"]:
        change.db.execute(ROWS_SQL["insert_source"], change.key | source | {"memory_seq": seq})
    for revision in memory["revisions"]:
        change.db.execute(management_rows.SQL["insert_revision"], change.key | revision | {"memory_seq": seq})
    return True


def _fields(value: object, fields: Mapping[str, tuple[type, ...]], number: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"value {number}: {value!r:.80} is not an object")
    found: dict[str, Any] = {}
    for name, types in fields.items():
        if name not in value:
            raise ValueError(f"value {number}: {name} is missing")
        one: Any = value[name]  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(one, types) or (isinstance(one, bool) and bool not in types):
            raise ValueError(f"value {number}: {name} is {one!r:.80}: expected {_names_of(types)}")
        if isinstance(one, int) and not -(2**63) <= one < 2**63:
            raise ValueError(f"value {number}: {name} is out of range")
        found[name] = storable(one) if isinstance(one, str) else one
    return found


def _names_of(types: tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in types)


def _encoded(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
