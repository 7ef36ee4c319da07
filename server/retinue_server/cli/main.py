"""The command line: retinue serve, send, agents, check.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or config. Each command imports what only it needs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import memory
from .options import (
    URL,
    Json,
    Key,
    Url,
    refuse,
)

if TYPE_CHECKING:
    from retinue_server.config import Config

HELP = """Agents that remember their users, served over A2A.

\b
  retinue serve                                     start the server, with a model and a memory on this machine
  retinue send "I am from Italy" --user alice       tell the agent something, in another terminal
  retinue send "Where am I from?" --user alice      a new conversation: it remembers
  retinue agents                                    what the server offers
  retinue check config/retinue.yaml                 what is wrong with a configuration, by line
  retinue memory list --user alice                  what is remembered of a user; memory --help for more
"""

app = typer.Typer(
    name="retinue",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(memory.app, name="memory")


def main() -> None:
    """The entry point of the `retinue` script."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"retinue {version('retinue')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Option(help="The configuration file. Default: config/retinue.yaml if it exists, or the built-in one."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on, instead of the configured one.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port to listen on, instead of the configured one.")
    ] = None,
) -> None:
    """Start the server.

    \b
      retinue serve
      retinue serve --config my.yaml --port 8080

    The first start downloads the weights of the built-in model and embedder (about 120 MB) if they are missing.
    Ctrl+C stops it.
    """
    _log_to_stderr()
    settings = _load(config)
    chosen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    if chosen:
        settings = settings.model_copy(update={"server": settings.server.model_copy(update=chosen)})
    from retinue_memory.errors import ConfigError, RetinueError
    from retinue_server.serve import serve as serve_until_stopped

    try:
        serve_until_stopped(settings)
    except ConfigError as error:
        refuse(str(error), 2)
    except RetinueError as error:
        refuse(str(error), 1)


@app.command()
def send(
    text: Annotated[str, typer.Argument(help="What to tell the agent.")],
    user: Annotated[str | None, typer.Option(help="Whose memory it is.")] = None,
    context: Annotated[str | None, typer.Option(help="The context to continue. Default: a new one.")] = None,
    agent: Annotated[str | None, typer.Option(help="The agent. Default: the server's default agent.")] = None,
    url: Url = URL,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it arrives.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the task as JSON.")] = False,
    key: Key = None,
) -> None:
    """Send a message to an agent, wait for the answer and print it.

    \b
      retinue send "I am from Italy" --user alice
      retinue send "What's the capital of my country?" --user alice --stream
      retinue send "Hello" --agent helper --json | jq .contextId
    """
    from retinue_memory.errors import RetinueError
    from retinue_server.client import TaskClient

    show = stream and not json_
    shown = False

    def print_piece(piece: str) -> None:
        nonlocal shown
        shown = shown or bool(piece)
        typer.echo(piece, nl=False)

    try:
        with TaskClient(url, key) as client:
            metadata = {} if user is None else {"user_id": user}
            done = client.send_task(
                text, metadata, context_id=context, agent=agent, stream=print_piece if show else None
            )
    except RetinueError as error:
        refuse(f"\n{error}" if shown else str(error), 1)
    if shown:
        typer.echo()
    if json_:
        typer.echo(json.dumps(done.to_dict(), indent=2, ensure_ascii=False))
    elif done.error is None and not shown:
        typer.echo(done.text)
    if done.error is not None:
        refuse(done.error, 1)


@app.command()
def agents(url: Url = URL, json_: Json = False, key: Key = None) -> None:
    """List the agents of a server.

    \b
      retinue agents
      retinue agents --url http://agents.example.com --json
    """
    from retinue_memory.errors import RetinueError
    from retinue_server.client import list_agents

    try:
        found = list_agents(url, key)
    except RetinueError as error:
        refuse(str(error), 1)
    if json_:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max((len(entry["name"]) for entry in found), default=0)
    for entry in found:
        mark = "*" if entry["default"] else " "
        typer.echo(f"{mark} {entry['name']:{width}}  {entry['url']}  {entry['description']}".rstrip())


@app.command()
def check(
    config: Annotated[
        Path | None, typer.Argument(help="The configuration file. Default: the one that `serve` would use.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the file, for editors.")] = False,
) -> None:
    """Report what is wrong with a configuration, by line: keys, values, models, memories, tools, imports.

    \b
      retinue check config/retinue.yaml
      retinue check --schema > retinue.schema.json
    """
    if schema:
        from retinue_server.config import Config

        typer.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    settings = _load(config)
    from retinue_memory.errors import ConfigError
    from retinue_server.assembly import build

    try:
        build(settings, deep=True)
    except ConfigError as error:
        refuse(str(error), 2)
    names = ", ".join(f"{name} (default)" if name == settings.default_agent else name for name in settings.agents)
    memories = ", ".join(f"{name} ({entry.backend})" for name, entry in settings.memory.items())
    typer.echo(
        f"{settings.path or 'the built-in configuration'}: fine. Agents: {names}. Memories: {memories or 'none'}. "
        f"Database: {settings.database}"
    )


def _load(path: Path | None) -> Config:
    from retinue_memory.errors import ConfigError
    from retinue_server.config import DEFAULT_FILE, default_config, load_config

    if path is None and not DEFAULT_FILE.exists():
        return default_config()
    try:
        return load_config(path or DEFAULT_FILE)
    except ConfigError as error:
        refuse(str(error), 2)


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn", "httpx", "a2a"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
