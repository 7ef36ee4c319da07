"""Served agents whose memory is a mem0 server, or the mem0 library in the server's process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..memory.mem0_cloud import eventually  # noqa: TID252 - as below
from ..memory.mem0_rest import RestServer  # noqa: TID252 - the one stand-in there is
from .conftest import COUNTRY, Serve, ask


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[RestServer]:
    server = RestServer(tmp_path / "mem0-server")
    yield server
    server.stop()


@pytest.fixture(params=["mem0-local", "mem0-server"])
def config(request: pytest.FixtureRequest) -> str:
    """An agent that recites what it is told of its user, over either."""
    if request.param == "mem0-local":
        request.getfixturevalue("weights")
        memory = "{backend: mem0-local, path: kept}"
    else:
        rest: RestServer = request.getfixturevalue("rest")
        memory = f'{{backend: mem0-server, url: "{rest.url}", infer: false}}'
    return f'memory:\n  default: {memory}\nagents:\n  reciter: {{default: true, model: "parts:Recite"}}\n'


def test_alice_is_known_until_she_is_erased(tmp_path: Path, serve: Serve, config: str) -> None:
    """The next task knows where she is from, and so does the one after kill -9; it is there once. Nobody else knows of it.
    Once she is erased nothing remains, in the tables or in any file of ours."""
    with serve(tmp_path, config) as server:
        ask(server.url, "I am from Italy")
        assert "I am from Italy" in ask(server.url, COUNTRY)
        assert "Italy" not in ask(server.url, COUNTRY, user="bob")
        server.process.kill()
        server.process.wait(10)
    with serve(tmp_path, config) as server, httpx.Client(base_url=f"{server.url}/api/v1", timeout=30) as api:
        eventually(
            lambda: "I am from Italy" in ask(server.url, COUNTRY)
        )  # mem0 takes seconds to load; a recall waits for two
        assert "Italy" not in ask(server.url, COUNTRY, user="bob")
        listed = api.get("/memories", params={"user": "alice"}).json()["memories"]
        assert [one["content"] for one in listed].count("I am from Italy") == 1
        receipt = api.delete("/users/alice", params={"tasks": "true"}).json()
        assert receipt["deleted"]["memories"] >= 1
        assert api.get("/users/alice").json()["remains"] == {}
        assert "Italy" not in ask(server.url, COUNTRY)
    ours = [path for folder in ("kept", "var") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert [path.name for path in ours if b"Italy" in path.read_bytes()] == []


def test_the_embedder_of_the_library_is_fetched_at_the_start(tmp_path: Path, serve: Serve) -> None:
    """As that of `native` is. Where it cannot be had, the server starts, says what is missing, and answers."""
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    nowhere |= {"PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "RETINUE_CACHE": str(tmp_path / "empty")}
    memory = "memory:\n  default: {backend: mem0-local, path: kept}\n"
    agents = 'agents:\n  reciter: {default: true, model: "parts:Recite"}\n'
    with serve(tmp_path, memory + agents, **nowhere) as server:
        assert "I am from Italy" in ask(server.url, "I am from Italy")
        log = (tmp_path / "server.log").read_text(encoding="utf-8")
        assert "those of mem0-local not at all: the weights could not be fetched" in log
