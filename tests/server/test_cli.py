"""The command line as people use it: commands in a process of their own, their output and exit codes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sqlite3
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from retinue_server.config import Config

from .conftest import PARTS, Serve, Server, command, environment

CONFIG = "agents: {a: {model: 'retinue_agents.testing:EchoModel', memory: off}}\n"


def retinue(*arguments: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"env": environment(), **more}
    return subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=60, check=False, **settings
    )


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def test_send_prints_the_answer(server: Server, tmp_path: Path) -> None:
    """And nothing else; as it comes with --stream."""
    for more in ((), ("--stream",), ("--agent", "echo"), ("--user", "alice", "--context", "c1")):
        done = retinue("send", "hello there", "--url", server.url, *more, cwd=tmp_path)
        assert outcome(done) == (0, "hello there\n", "")


def test_send_can_print_the_task(server: Server, tmp_path: Path) -> None:
    """--json is the task as the protocol gives it; --user is the user_id of the request's metadata, as a string."""
    done = retinue("send", "hello", "--url", server.url, "--user", "42", "--json", "--stream", cwd=tmp_path)
    task = json.loads(done.stdout)
    assert done.returncode == 0
    assert task["status"]["state"] == "TASK_STATE_COMPLETED"
    assert task["metadata"]["user_id"] == "42"
    assert task["artifacts"][0]["parts"] == [{"text": "hello"}]


def test_send_goes_where_the_environment_says(server: Server, tmp_path: Path) -> None:
    """RETINUE_URL stands in for --url."""
    done = retinue("send", "hello", cwd=tmp_path, env=environment(RETINUE_URL=server.url, RETINUE_KEY="k"))
    assert outcome(done) == (0, "hello\n", "")


def test_send_fails_with_the_reason(server: Server, tmp_path: Path) -> None:
    """Exit 1 and one line on stderr where the task failed, the server refused, or none is there; 2 for wrong usage."""
    cases = [
        (("--agent", "failing"), 1, "the model is out of order"),
        (("--agent", "failing", "--stream"), 1, "the model is out of order"),
        (("--user", ""), 1, "user_id: expected a non-empty string or a whole number below 2^53, got an empty string"),
        (("--agent", "ecko"), 1, "there is no agent 'ecko'"),
        (("--url", "http://127.0.0.1:9"), 1, "no server answers at http://127.0.0.1:9"),
    ]
    for more, code, reason in cases:
        done = retinue("send", "hello", "--url", server.url, *more, cwd=tmp_path)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1), done.stderr
        assert reason in done.stderr
    assert retinue("send", cwd=tmp_path).returncode == 2
    assert retinue("sned", "hello", cwd=tmp_path).returncode == 2


def test_agents_lists_what_there_is(server: Server, tmp_path: Path) -> None:
    """The default is marked; --json is the server's own list."""
    listed = retinue("agents", "--url", server.url, cwd=tmp_path).stdout.splitlines()
    assert listed[0].split(maxsplit=3) == ["*", "echo", f"{server.url}/agents/echo/", "Says it again."]
    assert [line.split()[0] for line in listed[1:]] == ["reciter", "rememberer", "failing", "upper", "direct"]
    as_json = json.loads(retinue("agents", "--url", server.url, "--json", cwd=tmp_path).stdout)
    assert as_json == httpx.get(f"{server.url}/agents").json()


def test_the_version_and_the_help(tmp_path: Path) -> None:
    """--help shows commands that work; no arguments show it too."""
    assert outcome(retinue("--version", cwd=tmp_path)) == (0, f"retinue {version('retinue')}\n", "")
    shown = retinue("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert 'retinue send "I am from Italy" --user alice' in shown.stdout
    for name in ("serve", "send", "agents", "check"):
        assert f"retinue {name}" in retinue(name, "--help", cwd=tmp_path).stdout


def test_check_finds_nothing_wrong_with_what_is_right(tmp_path: Path) -> None:
    """The built-in configuration, and the one in the repository."""
    explained = Path(__file__).parents[2] / "config" / "retinue.yaml"
    for arguments in ((), (str(explained),)):
        done = retinue("check", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "assistant (default)" in done.stdout
    assert not (tmp_path / "var").exists()


def test_check_prints_the_schema(tmp_path: Path) -> None:
    """For editors."""
    assert json.loads(retinue("check", "--schema", cwd=tmp_path).stdout) == Config.model_json_schema()


BROKEN = """\
memory:
  one: {backend: natve}
  two: {backend: "parts:Recite"}
  three: {backend: mem0, api_key: m0-key, host: nowhere}
  unused: {backend: natve}
agents:
  unknown-model: {model: local/smollm9, default: true}
  bad-format: {model: "parts:"}
  no-module: {model: "prats:Recite"}
  no-attribute: {model: "parts:Recites"}
  no-model: {model: "parts:Upper"}
  bad-settings:
    model: local/smollm2-135m
    settings:
      max_tokens: 100000
  bad-tools:
    model: echo
    tools:
      - parts:add
      - parts
      - prats:add
      - parts:sub
      - parts:not_callable
  bad-executor: {executor: "parts:Recite"}
  bad-memory:
    model: echo
    memory: [one, two, three]
"""
PROBLEMS = """\
line 2: memory.one.backend: there is no memory 'natve'
line 3: memory.two.backend: 'parts:Recite' is a Recite, not a Memory
line 4: memory.three.host: expected an address such as https://api.mem0.ai
line 5: memory.unused.backend: there is no memory 'natve'
line 7: agents.unknown-model.model: there is no local model 'smollm9'
line 8: agents.bad-format.model: 'parts:' is not of the form "module:attribute"
line 9: agents.no-module.model: there is no module 'prats'
line 10: agents.no-attribute.model: 'parts' has no attribute 'Recites'; did you mean "Recite"?
line 11: agents.no-model.model: 'parts:Upper' is neither a ChatModel nor a class of one
line 15: agents.bad-settings.settings.max_tokens: expected from 1 to
line 20: agents.bad-tools.tools[1]: 'parts' is not of the form "module:attribute"
line 21: agents.bad-tools.tools[2]: there is no module 'prats'
line 22: agents.bad-tools.tools[3]: 'parts' has no attribute 'sub'
line 23: agents.bad-tools.tools[4]: 5 is not a function
line 24: agents.bad-executor.executor: 'parts:Recite' is a Recite, not an a2a-sdk AgentExecutor
"""


@pytest.mark.parametrize("name", ["check", "serve"])
def test_what_a_configuration_names_and_is_not_there(tmp_path: Path, name: str) -> None:
    """Startup stops with one line each: key, line and way out; a bad format, a module and an attribute that are not there
    are three different errors. What no agent uses is only looked at by `check`."""
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    (tmp_path / "broken.yaml").write_text(BROKEN, encoding="utf-8")
    done = retinue(*((name,) if name == "check" else (name, "--config")), "broken.yaml", cwd=tmp_path)
    found = [line.removeprefix("broken.yaml: ") for line in done.stderr.splitlines()]
    assert (done.returncode, done.stdout) == (2, "")
    problems = [line for line in PROBLEMS.splitlines() if name == "check" or "unused" not in line]
    assert len(found) == len(problems)
    for line, problem in zip(found, problems, strict=True):
        assert line.startswith(problem)
    assert not (tmp_path / "var").exists()


def test_check_knows_the_providers_of_litellm(tmp_path: Path) -> None:
    """What `serve` would only learn at the first request."""
    (tmp_path / "c.yaml").write_text("agents: {a: {model: 'nosuch::model', memory: off}}", encoding="utf-8")
    done = retinue("check", "c.yaml", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("c.yaml: line 1: agents.a.model: ")


def test_serve_stops_at_a_wrong_configuration(tmp_path: Path) -> None:
    """One line for each mistake, exit 2; a file that is named must be there."""
    (tmp_path / "c.yaml").write_text("sever: {}\nagents: {}\n", encoding="utf-8")
    done = retinue("serve", "--config", "c.yaml", cwd=tmp_path)
    assert outcome(done) == (
        2,
        "",
        'c.yaml: line 1: sever: unknown key; did you mean "server"?\n'
        "c.yaml: line 2: agents: is empty: at least one is needed\n",
    )
    assert outcome(retinue("serve", "--config", "none.yaml", cwd=tmp_path)) == (
        2,
        "",
        "none.yaml: cannot be read: No such file or directory\n",
    )


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """Which port, and what to do."""
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = retinue("serve", "--config", "c.yaml", "--port", str(port), cwd=tmp_path)
    line = f"port {port} on 127.0.0.1 is in use: stop what uses it, or choose another with --port\n"
    assert outcome(done) == (1, "", line)


def test_a_host_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    """An address of another machine cannot be listened on."""
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    done = retinue("serve", "--config", "c.yaml", "--host", "192.0.2.1", cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "192.0.2.1" in done.stderr


def test_serve_reads_the_file_that_lies_there(tmp_path: Path) -> None:
    """Without --config it is config/retinue.yaml."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "retinue.yaml").write_text("agent: {}\n", encoding="utf-8")
    assert outcome(retinue("serve", cwd=tmp_path)) == (
        2,
        "",
        'config/retinue.yaml: line 1: agent: unknown key; did you mean "agents"?\n',
    )


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_quietly(serve: Serve, tmp_path: Path, sent: signal.Signals) -> None:
    """A signal closes everything; the log holds no stack trace."""
    with serve(tmp_path, CONFIG) as server:
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        server.process.send_signal(sent)
        server.process.wait(timeout=20)
    assert "Traceback" not in (tmp_path / "server.log").read_text(encoding="utf-8")


def test_a_stop_lets_streams_end(serve: Serve, tmp_path: Path) -> None:
    """Who is being answered when the server is told to stop hears the answer to its end."""
    slow = "import retinue_agents.testing as t\nmodel = t.EchoModel(delay=0.1, chunks=20)\n"
    (tmp_path / "slow.py").write_text(slow, encoding="utf-8")
    text = "a stop lets streams end, " * 4
    with (
        serve(tmp_path, "agents: {a: {model: 'slow:model', memory: off}}\n") as server,
        subprocess.Popen(
            command("send", text, "--url", server.url, "--stream"),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as sending,
    ):
        assert sending.stdout is not None
        heard = sending.stdout.read(3)
        server.process.terminate()
        heard += sending.stdout.read()
    assert (sending.returncode, heard) == (0, f"{text}\n")


GARBAGE = {
    "no database": b"these are not the bytes of a database\n" * 100,
    "a database, then garbage": None,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_corrupt_database_is_left_alone(tmp_path: Path, kind: str) -> None:
    """One clear line, exit 1, and not a byte of the file is changed."""
    path = tmp_path / "x.db"
    content = GARBAGE[kind]
    if content is None:
        with sqlite3.connect(path) as db:
            db.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(50000));")
        db.close()
        content = path.read_bytes()[:100] + b"\xff" * 8000
    path.write_bytes(content)
    (tmp_path / "c.yaml").write_text(f"database: sqlite:///x.db\n{CONFIG}", encoding="utf-8")
    done = retinue("serve", "--config", "c.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert done.stderr.startswith("x.db: ")
    assert path.read_bytes() == content


def not_almighty() -> None:
    """Let a process started by root be bound by file permissions, as everyone else is (Linux: drop CAP_DAC_OVERRIDE)."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_read_only_database_is_left_alone(tmp_path: Path) -> None:
    """One clear line that says what to do, exit 1, and nothing is written beside it."""
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    path.chmod(0o444)
    (tmp_path / "c.yaml").write_text(f"database: sqlite:///x.db\n{CONFIG}", encoding="utf-8")
    tmp_path.chmod(0o555)
    content, before = path.read_bytes(), sorted(tmp_path.iterdir())
    done = retinue("serve", "--config", "c.yaml", "--port", "0", cwd=tmp_path, preexec_fn=not_almighty)
    tmp_path.chmod(0o755)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert done.stderr.startswith("x.db: ")
    assert "writable" in done.stderr
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == (content, before)
