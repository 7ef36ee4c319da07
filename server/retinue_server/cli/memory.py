"""`retinue memory`: see, correct, move and erase what a running server remembers of a user."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .admin_client import connect, connect_to_scope, fail, quoted, value_of
from .memory_file import by_user, export_lines, item_lines, mem0_items
from .options import URL, Json, Key, Url, refuse

if TYPE_CHECKING:
    import httpx

HELP = """See, correct, move and erase what a running server remembers of a user.

\b
  retinue memory list --user alice
  retinue memory search "where does she live" --user alice
  retinue memory edit ID "I live in Oslo" --user alice
  retinue memory forget --user alice --query passport
  retinue memory export --user alice > alice.jsonl
  retinue memory erase --user alice --tasks --verify
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)

User = Annotated[str, typer.Option(help="The user whose memories they are.")]
Space = Annotated[str, typer.Option(help="The memory's name in the server's config.")]
Tenant = Annotated[str, typer.Option(help="The tenant, if there are several.")]
Kind = Annotated[list[str] | None, typer.Option(help="Only this kind. Can be repeated.")]
Since = Annotated[str | None, typer.Option(help="Only what was said at or after this time, such as 2026-01-31.")]
Until = Annotated[str | None, typer.Option(help="Only what was said before this time.")]
AsOf = Annotated[str | None, typer.Option(help="Only what was valid at this time.")]
Id = Annotated[str, typer.Argument(help="The memory's id, as `list` and `search` print it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
_MISSING = b'"missing"'
_OF_TASKS = frozenset(("tasks", "turns", "steps", "push_configs", "push_outbox"))


@app.command("list")
def list_(
    user: User,
    kind: Kind = None,
    since: Since = None,
    until: Until = None,
    as_of: AsOf = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Include what is no longer valid.")] = False,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Include what is kept out of prompts.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The most to print.")] = 50,
    space: Space = "default",
    tenant: Tenant = "",
    json_: Json = False,
    url: Url = URL,
    key: Key = None,
) -> None:
    """List memories, newest first."""
    flags = {"superseded": superseded, "quarantined": quarantined}
    query = _query(kind=kind, since=since, until=until, as_of=as_of, limit=limit, **flags)
    with connect_to_scope(url, key, user, space, tenant) as call:
        _show(call("GET", "/memories", query), json_)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="The text to search for.")],
    user: User,
    kind: Kind = None,
    since: Since = None,
    until: Until = None,
    as_of: AsOf = None,
    top: Annotated[int, typer.Option(min=1, max=500, help="The most to print.")] = 10,
    space: Space = "default",
    tenant: Tenant = "",
    json_: Json = False,
    url: Url = URL,
    key: Key = None,
) -> None:
    """Search as an agent does: best first, each with its score and the strongest reasons."""
    query = _query(q=text, kind=kind, since=since, until=until, as_of=as_of, top_k=top)
    with connect_to_scope(url, key, user, space, tenant) as call:
        _show(call("GET", "/memories/search", query), json_)


@app.command()
def get(id_: Id, user: User, space: Space = "default", tenant: Tenant = "", url: Url = URL, key: Key = None) -> None:
    """Print one memory, with the messages it came from and its history."""
    with connect_to_scope(url, key, user, space, tenant) as call:
        _print(call("GET", f"/memories/{quoted(id_)}"))


@app.command()
def add(
    text: Annotated[str, typer.Argument(help="The text to remember.")],
    user: User,
    kind: Annotated[str, typer.Option(help="RecentMessage, Summary, Entity or Preference.")] = "Entity",
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Add a memory by hand. Prints its id."""
    with connect_to_scope(url, key, user, space, tenant) as call:
        typer.echo(call("POST", "/memories", body={"content": text, "kind": kind})["id"])


@app.command()
def edit(
    id_: Id,
    text: Annotated[str, typer.Argument(help="The new text.")],
    user: User,
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Correct a memory. The old text stays in its history."""
    with connect_to_scope(url, key, user, space, tenant) as call:
        call("PATCH", f"/memories/{quoted(id_)}", body={"content": text})


@app.command()
def pin(
    id_: Id,
    user: User,
    off: Annotated[bool, typer.Option("--off", help="Unpin it.")] = False,
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Pin a memory, so that it neither fades nor expires."""
    with connect_to_scope(url, key, user, space, tenant) as call:
        call("PATCH", f"/memories/{quoted(id_)}", body={"pinned": not off})


@app.command()
def forget(
    user: User,
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of the memories.")] = None,
    query: Annotated[str | None, typer.Option(help="Forget all memories with these words.")] = None,
    since: Since = None,
    until: Until = None,
    yes: Yes = False,
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Delete memories for good: by id, by words, by time. Prints the receipt."""
    wanted = _query(ids=ids, query=query, since=since, until=until)
    if not wanted:
        refuse("say what to forget: ids, --query, --since or --until", 2)
    if not yes and not ids:
        typer.confirm(f"Delete the matching memories of {user} for good?", abort=True, err=True)
    with connect_to_scope(url, key, user, space, tenant) as call:
        _print(call("POST", "/memories/forget", body=wanted))


@app.command()
def export(
    user: User,
    output: Annotated[Path | None, typer.Option(help="The file to write; default: stdout.")] = None,
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Export everything that is stored of a user, as JSON Lines: memories of every space, tasks with messages and artifacts.

    Exit code 1 if a memory failed: the export has the others, and names the one that is missing.
    """
    missing: list[str] = []
    path, params = f"/users/{quoted(user)}/export", {"tenant": tenant}
    with connect(url, key) as client, client.stream("GET", path, params=params) as response:
        if response.is_error:
            response.read()
            fail(response)
        stream = output.open("wb") if output is not None else sys.stdout.buffer
        with stream:
            for line in _lines(response.iter_bytes()):
                stream.write(line)
                if _MISSING in line and (value := json.loads(line))["type"] == "missing":
                    missing.append(f"{value['space']} ({value['problem']})")
    if missing:
        refuse(f"the export is incomplete, export again: missing is memory {', '.join(missing)}", 1)


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A file of `export`, or of mem0's get_all.", exists=True, dir_okay=False)
    ],
    user: Annotated[
        str | None, typer.Option(help="The user to import for; of a mem0 file, import only theirs.")
    ] = None,
    space: Annotated[str, typer.Option(help="The memory for lines that name none.")] = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Import an export for this user. Existing memories and tasks stay as they are.

    Also imports what mem0's get_all returns, as JSON or JSON Lines: without --user, for each user that it names.
    """
    items = mem0_items(file)
    with connect(url, key) as client:

        def send(owner: str, lines: Iterable[bytes]) -> dict[str, int]:
            path = f"/users/{quoted(owner)}/import"
            new: dict[str, int] = value_of(client.post(path, params={"tenant": tenant}, content=lines))["new"]
            return new

        if items is not None:
            counts = {
                owner: send(owner, item_lines(theirs, space))["memory"]
                for owner, theirs in by_user(items, user).items()
            }
            _print({"new": {"memory": sum(counts.values())}, "users": counts})
        elif user is not None:
            _print({"new": send(user, export_lines(file, space))})
        else:
            refuse("say whose it becomes: --user", 2)


@app.command()
def erase(
    user: User,
    tasks: Annotated[bool, typer.Option("--tasks", help="Erase their tasks, with steps and artifacts, too.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check afterwards that nothing is left.")] = False,
    yes: Yes = False,
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Delete all memories of a user, in every space, for good. Prints the receipt.

    Exit code 1 if a memory failed: erase again. With --verify, also if something is left.
    """
    if not yes:
        what = "memories and tasks" if tasks else "memories"
        typer.confirm(f"Delete all {what} of {user} for good?", abort=True, err=True)
    with connect(url, key) as client:
        path, params = f"/users/{quoted(user)}", {"tenant": tenant}
        answer = client.delete(path, params=params | {"tasks": str(tasks).lower()})
        if _is_receipt(answer):
            _print({key: value for key, value in answer.json().items() if key != "error"})
        value_of(answer)
        if verify:
            found = value_of(client.get(path, params=params))
            left = {table: count for table, count in found["remains"].items() if tasks or table not in _OF_TASKS}
            if left or found["unknown"]:
                unknown = f"; cannot be checked: {', '.join(found['unknown'])}" if found["unknown"] else ""
                refuse(f"left: {json.dumps(left)}{unknown}", 1)
            typer.echo("verified: nothing is left")


@app.command()
def backends(json_: Json = False) -> None:
    """List the backends that a config can name: built in, or of installed distributions. Needs no server."""
    from retinue_memory.errors import ConfigError
    from retinue_memory.registry import backends as known
    from retinue_memory.registry import shadows

    try:
        found = list(known().values())
    except ConfigError as error:
        refuse(error.problem, 1)
    if json_:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    width = max(len(one.name) for one in found)
    for one in found:
        typer.echo(f"{one.name:{width}}  {one.target}  ({one.distribution or 'built in'})")
    for one in shadows():
        typer.echo(
            f"{one.name}: ignoring {one.target} of {one.distribution}, since a built-in one has this name", err=True
        )


@app.command()
def failed(
    retry: Annotated[bool, typer.Option("--retry", help="Retry the writes that were given up.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The most to print.")] = 50,
    json_: Json = False,
    url: Url = URL,
    key: Key = None,
) -> None:
    """List the memory writes of all users that were given up: the task, the attempts, the last problem."""
    with connect(url, key) as client:
        if retry:
            done = value_of(client.post("/failed-writes/retry"))
            typer.echo(f"retried: {done['retried']}")
            return
        found = value_of(client.get("/failed-writes", params={"limit": limit}))
    if json_:
        _print(found)
        return
    for write in found["writes"]:
        user = write["user"] or "-"
        typer.echo(f"{write['task']}  {write['memory']}  {user}  {write['tries']} tries  {write['problem']}")


def _lines(chunks: Iterable[bytes]) -> Generator[bytes]:
    """The lines of a body as it arrives, each with its end."""
    pending = b""
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if pending:
        yield pending


def _is_receipt(response: httpx.Response) -> bool:
    """Whether an erasure did something, if not everything."""
    return response.is_success or (response.status_code == 503 and "deleted" in response.text)


def _query(**values: Any) -> dict[str, Any]:
    return {name: "true" if value is True else value for name, value in values.items() if value}


def _print(value: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _show(found: Mapping[str, Any], json_: bool) -> None:
    if json_:
        _print(found)
        return
    for memory in found["memories"]:
        marks = "".join(
            mark for name, mark in (("pinned", "*"), ("valid_to", "-"), ("quarantined", "!")) if memory[name]
        )
        score = f"{memory['score']:.2f}  " if "score" in memory else ""
        typer.echo(
            f"{memory['id']}  {memory['created_at'][:10]}  {memory['kind']:13}  {score}{marks:1} {memory['content']}"
        )
        if "signals" in memory:
            strongest = sorted(memory["signals"].items(), key=lambda signal: -abs(signal[1]))[:4]
            typer.echo("    " + ", ".join(f"{name} {value:+.2f}" for name, value in strongest))
    if found.get("next"):
        typer.echo("there are more: raise --limit, or narrow with --since and --until", err=True)
