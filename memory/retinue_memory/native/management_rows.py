"""The owner's operations on rows: pages, history, edits, pins, deletions. The statements are in `management.sql`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.resources import files

from retinue_memory.clock import from_us, now_us, to_us
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
    json_list,
    key_of,
)
from .words import terms

SQL = named_queries(files("retinue_memory.native").joinpath("management.sql").read_text(encoding="utf-8"))
TABLES = ("memory_slots", "memory_revisions", "memory_sources", "memories", "memory_scopes")  # referencing ones first
_MAX_INT = 2**63 - 1
_CURSOR = re.compile(r"(-?\d{1,18})\.(\d{1,18})")


# -- reading --------------------------------------------------------------------------------------------------------------


def page(
    db: Connection, scope: Scope, where: MemoryFilter, limit: int, cursor: str | None
) -> tuple[list[MemoryRecord], str | None]:
    """`limit` memories that `where` selects, newest first, from `cursor` on, and the next cursor (None: there is no more).

    Raises ValueError for a cursor that no page returned.
    """
    found = _CURSOR.fullmatch(cursor) if cursor is not None else None
    if cursor is not None and found is None:
        raise ValueError(f"{cursor!r} is not a cursor: pass the `next` of the previous page")
    values = key_of(scope) | {
        "before_time": int(found[1]) if found else _MAX_INT,
        "before_seq": int(found[2]) if found else _MAX_INT,
        "since": -_MAX_INT if where.since is None else to_us(where.since),
        "until": _MAX_INT if where.until is None else to_us(where.until),
        "quarantined": where.quarantined,
        "mode": "as_of" if where.as_of is not None else "all" if where.superseded else "current",
        "at": now_us() if where.as_of is None else to_us(where.as_of),
        "kinds": json.dumps([str(kind) for kind in where.kinds]) if where.kinds else None,
        "limit": limit + 1,
    }
    rows = db.execute(SQL["page"], values).fetchall()
    records = by_seq(db, scope, [seq for seq, _ in rows[:limit]])
    more = f"{rows[limit - 1][1]}.{rows[limit - 1][0]}" if len(rows) > limit else None
    return [records[seq] for seq, _ in rows[:limit] if seq in records], more


def history(db: Connection, scope: Scope, id: str) -> list[MemoryRecord]:
    """The earlier versions of a memory and those it superseded, oldest first, then the memory itself."""
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
            valid_to=from_us(at),
            superseded_by=None,
        )
        before.append(earlier)
    line = [one for seq, record in records.items() for one in (*replaced.get(seq, ()), record)]
    line.sort(key=lambda one: (one.id == id, one.valid_from, one.created_at, one.version))
    return line


def remains(db: Connection, scope: Scope) -> dict[str, int]:
    """The rows of a scope by table, without zeros."""
    counts = {table: int(db.execute(SQL[f"count_{table}"], key_of(scope)).fetchone()[0]) for table in TABLES}
    return {table: count for table, count in counts.items() if count}


def said_between(db: Connection, scope: Scope, since: datetime | None, until: datetime | None) -> set[int]:
    """Row numbers of memories that were said, at whatever repetition, from `since` (inclusive) to `until` (exclusive)."""
    values = key_of(scope) | {
        "since": -_MAX_INT if since is None else to_us(since),
        "until": _MAX_INT if until is None else to_us(until),
    }
    return {seq for (seq,) in db.execute(SQL["said_between"], values)}


def containing(db: Connection, scope: Scope, query: str) -> set[int]:
    """Row numbers of memories whose text, or an earlier version of it, has all words of the query.

    Stop words count only if the query has no others.
    """
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


def without_vector(
    db: Connection, scope: Scope, embedder: str, limit: int, before: int = _MAX_INT
) -> list[tuple[int, int, str]]:
    """(seq, revision, content) of the latest memories with no vector of this embedder, and with a seq below `before`."""
    values = key_of(scope) | {"embedder": embedder, "limit": limit, "before": before}
    return db.execute(SQL["without_vector"], values).fetchall()


# -- writing --------------------------------------------------------------------------------------------------------------


def edit(change: Change, id: str, new: NewMemory, at: int) -> MemoryRecord | None:
    """Replace a memory's content and vector by those of `new`; the old text becomes a revision.

    Another current memory with the same words is superseded by it. Returns None if there is none with this id.
    """
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
            "content_hash": hashed if current else rows.random_hash(),
            "embedder": new.embedder,
            "dimensions": new.dimensions,
            "vector": new.vector,
            "tokens": new.tokens,
        }
        for (same,) in change.db.execute(SQL["same_words"], values).fetchall() if current else ():
            change.supersede(same, by=id, at=at)
        change.db.execute(SQL["insert_revision"], values | {"content": content})
        change.db.execute(SQL["rewrite"], values | {"content": new.content})
        change.start_epoch()
    return by_id(change.db, change.scope, [id]).get(id)


def pin(change: Change, id: str, pinned: bool) -> MemoryRecord | None:
    change.db.execute(SQL["pin"], change.key | {"id": id, "pinned": pinned, "version": change.version})
    return by_id(change.db, change.scope, [id]).get(id)


def forget(change: Change, seqs: Iterable[int]) -> dict[str, int]:
    """Delete memories, those derived from them, their revisions and sources. Returns the deleted rows by table."""
    seqs = set(seqs)
    derived = change.db.execute(SQL["derived_from"], change.key | {"seqs": json_list(sorted(seqs))}).fetchall()
    chosen = change.key | {"seqs": json_list(sorted(seqs.union(seq for (seq,) in derived)))}
    change.db.execute(SQL["clear_successors"], chosen | {"version": change.version})
    counts = {
        "memory_revisions": change.db.execute(SQL["delete_revisions"], chosen).rowcount,
        "memory_sources": change.db.execute(SQL["delete_sources"], chosen).rowcount,
        "memories": change.db.execute(SQL["delete_memories"], chosen).rowcount,
    }
    change.rows_changed += sum(counts.values())
    if counts["memories"]:
        change.start_epoch()
    return counts


def erase(db: Connection, scope: Scope) -> dict[str, int]:
    """Delete every row of the scope, which ends its generation. Returns the deleted rows by table."""
    return {table: db.execute(SQL[f"erase_{table}"], key_of(scope)).rowcount for table in TABLES}


def trim(change: Change, max_memories: int) -> int:
    """If the scope has more than `max_memories`, delete the least valuable that are not pinned, down to nine tenths.

    Counts once in a number of writes. Returns how many memories were deleted.
    """
    if not change.changed or change.version % max(1, min(64, max_memories // 20)):
        return 0
    (count,) = change.db.execute(SQL["count_memories"], change.key).fetchone()
    if count <= max_memories:
        return 0
    values = change.key | {
        "now": now_us(),
        "version": change.version,
        "limit": count - max_memories + max_memories // 10,
    }
    return forget(change, [seq for (seq,) in change.db.execute(SQL["least_valuable"], values)])["memories"]


def set_vectors(change: Change, rows: Sequence[tuple[int, int, NewMemory]]) -> None:
    """Set the vectors of memories, given as (seq, revision, vectors); those edited or deleted meanwhile are skipped."""
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
        change.rows_changed += change.db.execute(SQL["set_vector"], change.key | values).rowcount
