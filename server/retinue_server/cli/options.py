"""Options that several commands share, and the way a command fails."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

URL = "http://127.0.0.1:9000"

Url = Annotated[str, typer.Option(envvar="RETINUE_URL", help="The server's address.")]
Key = Annotated[str | None, typer.Option(envvar="RETINUE_KEY", help="The key, if the server requires one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def refuse(reason: str, code: int) -> NoReturn:
    """Print the reason to stderr and exit with this code."""
    typer.echo(reason, err=True)
    raise typer.Exit(code)
