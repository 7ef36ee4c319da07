"""Files that `retinue memory import` reads: exports of ours, and what mem0's get_all returns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import typer

from .options import refuse


def mem0_items(file: Path) -> list[Any] | None:
    """The items of a mem0 file. Returns None if the file is an export; a file that is neither ends the command."""
    from retinue_memory.mem0_items import items_of

    try:
        with file.open(encoding="utf-8") as lines:
            first = next((line for line in lines if line.strip()), "")
            if not first or _is_export(first):
                return None
            lines.seek(0)
            text = lines.read()
        try:
            return items_of(json.loads(text))
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        refuse(f"{file}: neither an export nor what mem0's get_all gives: {error}", 1)


def _is_export(line: str) -> bool:
    try:
        value: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and bool({"type", "format"} & value.keys()) and "id" not in value


def export_lines(file: Path, space: str) -> Generator[bytes]:
    """The lines of an export. Those of a memory's own export become memories of this space."""
    head, tail = b"", b"\n"
    with file.open("rb") as lines:
        for number, line in enumerate(filter(bytes.strip, lines)):
            if number == 0 and "format" in json.loads(line):
                head, tail = _memory_line(space), b"}\n"
            yield head + line.strip() + tail


def item_lines(items: Iterable[Any], space: str) -> Generator[bytes]:
    """Items of mem0 as memories of this space."""
    return (_memory_line(space) + json.dumps(item).encode() + b"}\n" for item in items)


def _memory_line(space: str) -> bytes:
    """What stands before a memory in its line of an export."""
    return b'{"type": "memory", "space": %b, "memory": ' % json.dumps(space).encode()


def by_user(items: list[Any], user: str | None) -> dict[str, list[Any]]:
    """The items of each user, or of `user` alone; those that name nobody are `user`'s.

    Reports on stderr what is left out. An invalid item, or none to import, ends the command.
    """
    from retinue_memory.mem0_items import read_item

    chosen: dict[str, list[Any]] = {}
    skipped: Counter[str] = Counter()
    with_metadata = 0
    for number, value in enumerate(items, 1):
        try:
            item = read_item(value, f"item {number}")
        except ValueError as error:
            refuse(f"nothing was imported: {error}", 1)
        owner = user if item.owner == "nobody" else item.user
        if owner is None or user not in (None, owner):
            skipped[item.owner] += 1
        else:
            chosen.setdefault(owner, []).append(value)
            with_metadata += bool(value.get("metadata"))
    if skipped:
        counts = ", ".join(f"{count} of {owner}" for owner, count in sorted(skipped.items()))
        typer.echo(f"left out: {counts}", err=True)
    if with_metadata:
        typer.echo(f"the metadata of {with_metadata} memories is not kept", err=True)
    if not chosen:
        refuse("nothing to import" + (f" for {user}" if user is not None else ""), 1)
    return chosen
