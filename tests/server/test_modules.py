"""What a server does not import until it needs it: the reason why it starts fast and stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .conftest import environment

HEAVY = {"litellm", "mem0", "xllamacpp", "onnxruntime", "tokenizers", "openai"}

SERVED = """
import asyncio, json, sys
from retinue_server.config import default_config
from retinue_server.assembly import build
import retinue_server.cli.main, retinue_server.serve, httpx

async def main():
    server = build(default_config())
    server.open()
    app = server.app
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/.well-known/agent-card.json")).status_code == 200

asyncio.run(main())
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def modules(code: str, folder: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(found)


def test_the_default_configuration_serves_without_what_is_heavy(tmp_path: Path) -> None:
    """Model, embedder, LiteLLM and mem0 are imported by the first turn that needs them."""
    assert modules(SERVED, tmp_path) & HEAVY == set()


def test_the_default_configuration_serves_without_grpc(tmp_path: Path) -> None:
    """It is an extra: a base install has none of it."""
    blocked = "import sys\nsys.modules['grpc'] = None\n"
    assert "retinue_server" in modules(blocked + SERVED, tmp_path)


def test_the_command_line_starts_with_next_to_nothing(tmp_path: Path) -> None:
    """Help comes at once: no SDK, no server, no YAML."""
    code = "import retinue_server.cli.main, json, sys; print(json.dumps(sorted(sys.modules)))"
    needless = HEAVY | {"a2a", "google", "httpx", "numpy", "pydantic", "starlette", "yaml"}
    assert modules(code, tmp_path) & needless == set()
