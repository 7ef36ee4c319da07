"""What the owner of a memory does with its rows: leaf through them, correct, pin, forget, erase. See `management.sql`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from retinue_memory.database.base import Connection
from retinue_memory.database.migrations import named_queries
from retinue_memory.memory import (
    MemoryFilter,
    MemoryKind,
    MemoryRecord,
    Scope,
)

from . import rows
from .rows import (
    Change,
    NewMemory,
    by_id,
    by_seq,
    content_hash,
    key_of,
    microseconds,
    moment,
)
from .words import terms

SQL = named_queries(files("retinue_memory.native").joinpath("management.sql").read_text(encoding="utf-8"))
TABLES = ("memory_slots", "memory_revisions", "memory_sources", "memories", "memory_scopes")
"""In the order in which they may be emptied."""
_EVER = 2**63 - 1
_CURSOR = re.compile(r"(-?\d{1,18})\.(\d{1,18})")


# -- reading --------------------------------------------------------------------------------------------------------------


def page(
    db: Connection, scope: Scope, where: MemoryFilter, limit: int, cursor: str | None
) -> tuple[list[MemoryRecord], str | None]:
    """`limit` memories that `where` means, newest first, after `cursor`, and the next cursor. Raises ValueError for a cursor
    that no page gave."""
    found = _CURSOR.fullmatch(cursor) if cursor is not None else None
    if cursor is not None and found is None:
        raise ValueError(f"{cursor!r} is not a cursor: pass the `next` of the page before")
    values = key_of(scope) | {
        "before_time": int(found[1]) if found else _EVER,
        "before_seq": int(found[2]) if found else _EVER,
        "since": -_EVER if where.since is None else microseconds(where.since),
        "until": _EVER if where.until is None else microseconds(where.until),
        "quarantined": where.quarantined,
        "mode": "as_of" if where.as_of is not None else "all" if where.superseded else "current",
        "at": microseconds(datetime.now(UTC) if where.as_of is None else where.as_of),
        "kinds": json.dumps([str(kind) for kind in where.kinds]) if where.kinds else None,
        "most": limit + 1,
    }
    rows = db.execute(SQL["page"], values).fetchall()
    records = by_seq(db, scope, [seq for seq, _ in rows[:limit]])
    more = f"{rows[limit - 1][1]}.{rows[limit - 1][0]}" if len(rows) > limit else None
    return [records[seq] for seq, _ in rows[:limit] if seq in records], more


def history(db: Connection, scope: Scope, id: str) -> list[MemoryRecord]:
    """The earlier versions of a memory and all that it superseded, oldest first; the memory itself last."""
    seqs = [seq for (seq,) in db.execute(SQL["lineage"], key_of(scope) | {"id": id})]
    records = by_seq(db, scope, seqs)
    replaced: dict[int, list[MemoryRecord]] = {}
    for seq, revision, kind, content, at in db.execute(SQL["revisions"], key_of(scope) | {"seqs": json.dumps(seqs)}):
        before = replaced.setdefault(seq, [])
        earlier = dataclasses.replace(
            records[seq],
            kind=MemoryKind(kind),
            content=content,
            version=revision,
            valid_from=before[-1].valid_to if before and before[-1].valid_to else records[seq].valid_from,
            valid_to=moment(at),
            superseded_by=None,
        )
        before.append(earlier)
    line = [one for seq, record in records.items() for one in (*replaced.get(seq, ()), record)]
    line.sort(key=lambda one: (one.id == id, one.valid_from, one.created_at, one.version))
    return line


def remains(db: Connection, scope: Scope) -> dict[str, int]:
    """How many rows there are of a scope, by table; none are left out, so empty is nothing."""
    counts = {table: int(db.execute(SQL[f"count_{table}"], key_of(scope)).fetchone()[0]) for table in TABLES}
    return {table: count for table, count in counts.items() if count}


def said_between(db: Connection, scope: Scope, since: datetime | None, until: datetime | None) -> set[int]:
    """What was said, the first, the last or any other time, from `since` to before `until`."""
    values = key_of(scope) | {
        "since": -_EVER if since is None else microseconds(since),
        "until": _EVER if until is None else microseconds(until),
    }
    return {seq for (seq,) in db.execute(SQL["said_between"], values)}


def holding(db: Connection, scope: Scope, query: str) -> set[int]:
    """The memories in which, now or before an edit, all words of the query occur; stop words count where it has no others."""
    wanted = frozenset(terms(query))
    words = query.casefold().split()

    def holds(text: str) -> bool:
        if wanted:
            return wanted <= frozenset(terms(text))
        folded = text.casefold()
        return all(word in folded for word in words)

    return {seq for seq, text in db.execute(SQL["texts"], key_of(scope)) if holds(text)}


def seqs_of(db: Connection, scope: Scope, ids: Iterable[str]) -> set[int]:
    return {seq for (seq,) in db.execute(rows.SQL["seqs_by_id"], key_of(scope) | {"ids": json.dumps(list(ids))})}


def of_other_models(
    db: Connection, scope: Scope, embedder: str, most: int, before: int = _EVER
) -> list[tuple[int, int, str]]:
    """(seq, revision, content) of the latest memories without a vector of this model, and with a seq below `before`."""
    values = key_of(scope) | {"embedder": embedder, "most": most, "before": before}
    return db.execute(SQL["of_other_models"], values).fetchall()


# -- writing --------------------------------------------------------------------------------------------------------------


def edit(change: Change, id: str, new: NewMemory, at: int) -> MemoryRecord | None:
    """Put the content and vector of `new` in the place of a memory's; the old text becomes a revision. A current memory that
    says the same already is superseded by it."""
    row = change.db.execute(SQL["for_edit"], change.key | {"id": id}).fetchone()
    if row is None:
        return None
    seq, kind, content, role, speaker, quarantined, current, revision = row
    if content != new.content:
        hashed = content_hash(role, speaker, new.content, quarantined=bool(quarantined))
        values = change.key | {
            "id": id,
            "version": change.version,
            "memory_seq": seq,
            "revision": revision,
            "kind": kind,
            "replaced_at": at,
            "content_hash": hashed if current else rows.no_words(),
            "embedder": new.embedder,
            "dimensions": new.dimensions,
            "vector": new.vector,
            "tokens": new.tokens,
        }
        for (same,) in change.db.execute(SQL["same_words"], values).fetchall() if current else ():
            change.supersede(same, by=id, at=at)
        change.db.execute(SQL["insert_revision"], values | {"content": content})
        change.db.execute(SQL["rewrite"], values | {"content": new.content})
        change.start_over()
    return by_id(change.db, change.scope, [id]).get(id)


def pin(change: Change, id: str, pinned: bool) -> MemoryRecord | None:
    change.db.execute(SQL["pin"], change.key | {"id": id, "pinned": pinned, "version": change.version})
    return by_id(change.db, change.scope, [id]).get(id)


def forget(change: Change, seqs: Iterable[int]) -> dict[str, int]:
    """Delete memories, what was drafted from the messages they are, and all that hangs on them; how many rows, by table."""
    chosen = change.key | {"seqs": json.dumps(sorted(seqs))}
    drafts = [seq for (seq,) in change.db.execute(SQL["made_of"], chosen)]
    chosen["seqs"] = json.dumps(sorted({*json.loads(str(chosen["seqs"])), *drafts}))
    change.db.execute(SQL["leave_successors"], chosen | {"version": change.version})
    counts = {
        "memory_revisions": change.db.execute(SQL["delete_revisions"], chosen).rowcount,
        "memory_sources": change.db.execute(SQL["delete_sources"], chosen).rowcount,
        "memories": change.db.execute(SQL["delete_memories"], chosen).rowcount,
    }
    change.touched += sum(counts.values())
    if counts["memories"]:
        change.start_over()
    return counts


def erase(db: Connection, scope: Scope) -> dict[str, int]:
    """Delete every row of the scope, and with it its life: what began in it is not written any more."""
    return {table: db.execute(SQL[f"erase_{table}"], key_of(scope)).rowcount for table in TABLES}


def trim(change: Change, most: int) -> int:
    """Where the scope has more than `most` memories, delete the least valuable of those that are not pinned, down to nine
    tenths of it, so that it is seldom done. Looked at once in so many writes. How many went."""
    if not change.changed or change.version % max(1, min(64, most // 20)):
        return 0
    (count,) = change.db.execute(SQL["count_memories"], change.key).fetchone()
    if count <= most:
        return 0
    values = change.key | {
        "now": microseconds(datetime.now(UTC)),
        "version": change.version,
        "most": count - most + most // 10,
    }
    return forget(change, [seq for (seq,) in change.db.execute(SQL["least_valuable"], values)])["memories"]


def set_vectors(change: Change, rows: Sequence[tuple[int, int, NewMemory]]) -> None:
    """Give memories, by (seq, revision), the vectors of `NewMemory`; what was edited or deleted meanwhile is passed over."""
    for seq, revision, new in rows:
        values: dict[str, object] = {
            "seq": seq,
            "revision": revision,
            "version": change.version,
            "embedder": new.embedder,
            "dimensions": new.dimensions,
            "vector": new.vector,
            "tokens": new.tokens,
        }
        change.touched += change.db.execute(SQL["set_vector"], change.key | values).rowcount
