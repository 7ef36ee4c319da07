"""The command line of memories: retinue memory list, search, get, add, edit, pin, forget, export, import, erase, failed,
backends."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from .options import (
    URL,
    Json,
    Key,
    Url,
    refuse,
)

if TYPE_CHECKING:
    import httpx

HELP = """See, correct and erase what is remembered of a user, on a server that runs.

\b
  retinue memory list --user alice
  retinue memory search "where does she live" --user alice
  retinue memory edit ID "I live in Oslo" --user alice
  retinue memory forget --user alice --query passport
  retinue memory export --user alice > alice.jsonl
  retinue memory erase --user alice --tasks --verify
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)

User = Annotated[str, typer.Option(help="Whose memory it is.")]
Space = Annotated[str, typer.Option(help="The memory's name in the server's configuration.")]
Tenant = Annotated[str, typer.Option(help="The tenant, where there are several.")]
Kind = Annotated[list[str] | None, typer.Option(help="Only this kind; may be given several times.")]
Since = Annotated[str | None, typer.Option(help="Only what was said from this time on, such as 2026-01-31.")]
Until = Annotated[str | None, typer.Option(help="Only what was said before this time.")]
AsOf = Annotated[str | None, typer.Option(help="What held at this time, whatever holds now.")]
Id = Annotated[str, typer.Argument(help="The memory's id, as `list` and `search` show it.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_SECONDS = 120.0
_MISSING = b'"missing"'
_OF_TASKS = frozenset(("tasks", "turns", "steps", "push_configs", "push_outbox"))


@app.command("list")
def list_(
    user: User,
    kind: Kind = None,
    since: Since = None,
    until: Until = None,
    as_of: AsOf = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Also what no longer holds.")] = False,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Also what is kept from prompts.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 50,
    space: Space = "default",
    tenant: Tenant = "",
    json_: Json = False,
    url: Url = URL,
    key: Key = None,
) -> None:
    """What is remembered, newest first."""
    flags = {"superseded": superseded, "quarantined": quarantined}
    query = _query(kind=kind, since=since, until=until, as_of=as_of, limit=limit, **flags)
    with _server(url, key, user, space, tenant) as call:
        _show(call("GET", "/memories", query), json_)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    user: User,
    kind: Kind = None,
    since: Since = None,
    until: Until = None,
    as_of: AsOf = None,
    top: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 10,
    space: Space = "default",
    tenant: Tenant = "",
    json_: Json = False,
    url: Url = URL,
    key: Key = None,
) -> None:
    """What an agent would find, best first, each with its score and why."""
    query = _query(q=text, kind=kind, since=since, until=until, as_of=as_of, top_k=top)
    with _server(url, key, user, space, tenant) as call:
        _show(call("GET", "/memories/search", query), json_)


@app.command()
def get(id_: Id, user: User, space: Space = "default", tenant: Tenant = "", url: Url = URL, key: Key = None) -> None:
    """One memory, with the messages it came from and its history."""
    with _server(url, key, user, space, tenant) as call:
        _print(call("GET", f"/memories/{_part(id_)}"))


@app.command()
def add(
    text: Annotated[str, typer.Argument(help="What to remember.")],
    user: User,
    kind: Annotated[str, typer.Option(help="RecentMessage, Summary, Entity or Preference.")] = "Entity",
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Remember something by hand; prints its id."""
    with _server(url, key, user, space, tenant) as call:
        typer.echo(call("POST", "/memories", body={"content": text, "kind": kind})["id"])


@app.command()
def edit(
    id_: Id,
    text: Annotated[str, typer.Argument(help="What it says from now on.")],
    user: User,
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Correct a memory; what it said before stays in its history."""
    with _server(url, key, user, space, tenant) as call:
        call("PATCH", f"/memories/{_part(id_)}", body={"content": text})


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
    """Keep a memory from fading and expiring."""
    with _server(url, key, user, space, tenant) as call:
        call("PATCH", f"/memories/{_part(id_)}", body={"pinned": not off})


@app.command()
def forget(
    user: User,
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of what to forget.")] = None,
    query: Annotated[str | None, typer.Option(help="Forget all that contain these words.")] = None,
    since: Since = None,
    until: Until = None,
    yes: Yes = False,
    space: Space = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Delete memories for good: by id, by words, by when they were said. Prints the receipt."""
    wanted = _query(ids=ids, query=query, since=since, until=until)
    if not wanted:
        refuse("say what to forget: ids, --query, --since or --until", 2)
    if not yes and not ids:
        typer.confirm(f"Delete what matches, of {user}, for good?", abort=True, err=True)
    with _server(url, key, user, space, tenant) as call:
        _print(call("POST", "/memories/forget", body=wanted))


@app.command()
def export(
    user: User,
    output: Annotated[Path | None, typer.Option(help="The file to write; else to the terminal.")] = None,
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Everything that is kept of a user, as JSON Lines: memories of every space, tasks with messages and artifacts.

    Exit code 1 where a memory failed: what the others gave is there, and what is missing is named in it.
    """
    missing: list[str] = []
    path, params = f"/users/{_part(user)}/export", {"tenant": tenant}
    with _client(url, key) as client, client.stream("GET", path, params=params) as got:
        if got.is_error:
            got.read()
            _fail(got)
        stream = output.open("wb") if output is not None else sys.stdout.buffer
        with stream:
            for line in _lines(got.iter_bytes()):
                stream.write(line)
                if _MISSING in line and (value := json.loads(line))["type"] == "missing":
                    missing.append(f"{value['space']} ({value['problem']})")
    if missing:
        refuse(f"not whole, export again: missing is memory {', '.join(missing)}", 1)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `export` wrote, or mem0's get_all.", exists=True, dir_okay=False)],
    user: Annotated[str | None, typer.Option(help="Whose memory it becomes; of mem0's: whose alone is taken.")] = None,
    space: Annotated[str, typer.Option(help="The memory that takes what names none.")] = "default",
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Take an export, for this user. What is there already stays as it is.

    Also takes what mem0's get_all gives, as JSON or JSON Lines: without --user, each user's memories become that user's.
    """
    taken = _of_mem0(file)
    if taken is None and user is None:
        refuse("say whose it becomes: --user", 2)
    with _client(url, key) as client:
        if taken is None:
            exported = _exported(file, space)
            _print(_answer(client.post(_importing(user), params={"tenant": tenant}, content=exported)))
            return
        counts: dict[str, int] = {}
        for owner, items in _by_user(taken, user).items():
            lines = (json.dumps({"type": "memory", "space": space, "memory": item}).encode() + b"\n" for item in items)
            new = _answer(client.post(_importing(owner), params={"tenant": tenant}, content=lines))["new"]
            counts[owner] = new["memory"]
        _print({"new": {"memory": sum(counts.values())}, "users": counts})


@app.command()
def erase(
    user: User,
    tasks: Annotated[bool, typer.Option("--tasks", help="Also tasks, journals and artifacts.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Look afterwards whether anything is left.")] = False,
    yes: Yes = False,
    tenant: Tenant = "",
    url: Url = URL,
    key: Key = None,
) -> None:
    """Delete everything that is remembered of a user, in every space, for good. Prints the receipt.

    Exit code 1 where a memory failed, so that it must be said again; with --verify, also where something is left.
    """
    if not yes:
        what = "memories and tasks" if tasks else "memories"
        typer.confirm(f"Delete all {what} of {user} for good?", abort=True, err=True)
    with _client(url, key) as client:
        path, params = f"/users/{_part(user)}", {"tenant": tenant}
        answer = client.delete(path, params=params | {"tasks": str(tasks).lower()})
        if _is_receipt(answer):
            _print({key: value for key, value in answer.json().items() if key != "error"})
        _answer(answer)
        if verify:
            found = _answer(client.get(path, params=params))
            left = {table: count for table, count in found["remains"].items() if tasks or table not in _OF_TASKS}
            if left or found["unknown"]:
                unknown = f"; cannot be looked into: {', '.join(found['unknown'])}" if found["unknown"] else ""
                refuse(f"left: {json.dumps(left)}{unknown}", 1)
            typer.echo("verified: nothing is left")


@app.command()
def backends(json_: Json = False) -> None:
    """The memories that a configuration can name here: built in, or offered by what is installed. Asks no server."""
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
            f"{one.name}: {one.distribution} offers {one.target} by this name, which is the built-in one's", err=True
        )


@app.command()
def failed(
    retry: Annotated[bool, typer.Option("--retry", help="Try again what was given up, of all users.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 50,
    json_: Json = False,
    url: Url = URL,
    key: Key = None,
) -> None:
    """What could not be written to a memory and was given up, of all users: the task, the tries, the last problem."""
    with _client(url, key) as client:
        if retry:
            done = _answer(client.post("/failed-writes/retry"))
            typer.echo(f"tried again: {done['retried']}")
            return
        found = _answer(client.get("/failed-writes", params={"limit": limit}))
    if json_:
        _print(found)
        return
    for write in found["writes"]:
        whose = write["user"] or "-"
        typer.echo(f"{write['task']}  {write['memory']}  {whose}  {write['tries']} tries  {write['problem']}")


# -- what is imported -----------------------------------------------------------------------------------------------------


def _of_mem0(file: Path) -> list[Any] | None:
    """The items that mem0 gave out; None: the file is an export of ours. Refuses what is neither."""
    from retinue_memory.mem0_items import items_of

    try:
        with file.open(encoding="utf-8") as lines:
            first = next((line for line in lines if line.strip()), "")
            if not first or _is_ours(first):
                return None
            lines.seek(0)
            text = lines.read()
        try:
            return items_of(json.loads(text))
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        refuse(f"{file}: neither an export nor what mem0's get_all gives: {error}", 1)


def _is_ours(line: str) -> bool:
    try:
        value: Any = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and bool({"type", "format"} & value.keys()) and "id" not in value


def _exported(file: Path, space: str) -> Generator[bytes]:
    """The lines of an export; those that a memory itself exported, in a program, as of this space."""
    head, tail = b"", b"\n"
    with file.open("rb") as lines:
        for number, line in enumerate(filter(bytes.strip, lines)):
            if number == 0 and "format" in json.loads(line):
                head, tail = b'{"type": "memory", "space": %b, "memory": ' % json.dumps(space).encode(), b"}\n"
            yield head + line.strip() + tail


def _by_user(items: list[Any], wanted: str | None) -> dict[str, list[Any]]:
    """The items by the user they are of, `wanted` alone if one is; what is left out is said. Refuses where an item is wrong,
    and where nothing is left."""
    from retinue_memory.mem0_items import read_item

    chosen: dict[str, list[Any]] = {}
    skipped: Counter[str] = Counter()
    without = 0
    for number, value in enumerate(items, 1):
        try:
            item = read_item(value, f"item {number}")
        except ValueError as error:
            refuse(f"nothing was imported: {error}", 1)
        owner = wanted if item.owner == "nobody" else item.user
        if owner is None or wanted not in (None, owner):
            skipped[item.owner] += 1
        else:
            chosen.setdefault(owner, []).append(value)
            without += bool(value.get("metadata"))
    if skipped:
        whose = ", ".join(f"{count} of {owner}" for owner, count in sorted(skipped.items()))
        typer.echo(f"left out: {whose}", err=True)
    if without:
        typer.echo(f"the metadata of {without} memories is not kept", err=True)
    if not chosen:
        refuse("nothing to import" + (f" for {wanted}" if wanted is not None else ""), 1)
    return chosen


def _lines(chunks: Iterable[bytes]) -> Generator[bytes]:
    """The lines of a body as it comes, each with its end."""
    pending = b""
    for chunk in chunks:
        *lines, pending = (pending + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if pending:
        yield pending


def _importing(user: str | None) -> str:
    return f"/users/{_part(user or '')}/import"


# -- the server ----------------------------------------------------------------------------------------------------------


class _Call:
    """Calls the API on behalf of one user and space."""

    def __init__(self, client: httpx.Client, **whose: str) -> None:
        self._client = client
        self._whose = whose

    def __call__(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        params = {**self._whose, **(query or {})}
        return _answer(self._client.request(method, path, params=params, json=body))


@contextmanager
def _server(url: str, key: str | None, user: str, space: str, tenant: str) -> Generator[_Call]:
    with _client(url, key) as client:
        yield _Call(client, user=user, space=space, tenant=tenant)


@contextmanager
def _client(url: str, key: str | None) -> Generator[httpx.Client]:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=f"{url.rstrip('/')}/api/v1", headers=headers, timeout=_SECONDS) as client:
            yield client
    except httpx.ConnectError:
        refuse(f"no server answers at {url}: start one with `retinue serve`, or name another with --url", 1)
    except httpx.RemoteProtocolError:
        refuse(f"{url}: the answer broke off, and is not whole: the server's log says why", 1)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        refuse(f"{url}: {error or type(error).__name__}", 1)


def _answer(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        _fail(answer)
    found: dict[str, Any] = answer.json()
    return found


def _is_receipt(answer: httpx.Response) -> bool:
    """Whether something was erased, if not everything."""
    return answer.is_success or (answer.status_code == 503 and "deleted" in answer.text)


def _fail(answer: httpx.Response) -> NoReturn:
    try:
        reason = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        reason = f"HTTP {answer.status_code}"
    refuse(str(reason), 1)


def _query(**values: Any) -> dict[str, Any]:
    return {name: "true" if value is True else value for name, value in values.items() if value}


def _part(value: str) -> str:
    return quote(value, safe="")


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
        typer.echo("There are more: raise --limit, or narrow with --since and --until.", err=True)
