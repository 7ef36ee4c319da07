"""What every command of the terminal shares: the options that name a server, and how a refusal is said."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

URL = "http://127.0.0.1:9000"

Url = Annotated[str, typer.Option(envvar="RETINUE_URL", help="The server's address.")]
Key = Annotated[str | None, typer.Option(envvar="RETINUE_KEY", help="The key, where the server wants one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def refuse(reason: str, code: int) -> NoReturn:
    """Say why on stderr, and end with this exit code."""
    typer.echo(reason, err=True)
    raise typer.Exit(code)
