"""Real servers for tests: a process of its own, on a free port, stopped at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from retinue_server import TaskClient

START_SECONDS = 30.0
COUNTRY = "What's the capital of my country?"

PARTS = '''
"""What the configurations of these tests name: it lies beside them."""
from a2a.server.agent_execution import AgentExecutor
from a2a.types import Message, Part, Role, Task, TaskState, TaskStatus, TaskStatusUpdateEvent
from retinue_memory import ChatModel, ModelDelta
from retinue_memory.errors import ModelError


class Recite(ChatModel):
    """Answers with all that it was shown, a line each."""

    async def stream(self, messages, *, tools=(), schema=None, **settings):
        for message in messages:
            yield ModelDelta(f"{message.role}: {message.content}\\n")


class Fail(ChatModel):
    async def stream(self, messages, *, tools=(), schema=None, **settings):
        raise ModelError("the model is out of order")
        yield


class Upper(AgentExecutor):
    """A foreign executor: asks once, then answers in capitals; a message without text is welcome."""

    async def execute(self, context, queue):
        if context.current_task is None:
            task = Task(id=context.task_id, context_id=context.context_id, history=[context.message])
            task.status.state = TaskState.TASK_STATE_SUBMITTED
            await queue.enqueue_event(task)
            state, text = TaskState.TASK_STATE_INPUT_REQUIRED, "how loud?"
        else:
            state, text = TaskState.TASK_STATE_COMPLETED, context.get_user_input().upper()
        said = Message(message_id="1", role=Role.ROLE_AGENT, parts=[Part(text=text)])
        status = TaskStatus(state=state, message=said)
        await queue.enqueue_event(
            TaskStatusUpdateEvent(task_id=context.task_id, context_id=context.context_id, status=status)
        )

    async def cancel(self, context, queue):
        pass


class Direct(AgentExecutor):
    """Answers with a message, without a task."""

    async def execute(self, context, queue):
        await queue.enqueue_event(Message(message_id="1", role=Role.ROLE_AGENT, parts=[Part(text="hello")]))

    async def cancel(self, context, queue):
        pass


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


not_callable = 5
'''

CONFIG = """\
memory:
  default: {embedder: off}
agents:
  echo:
    default: true
    description: Says it again.
    model: retinue_agents.testing:EchoModel
    memory: off
    provider: {organization: Example, url: https://example.com}
    skills:
      - {id: repeat, name: Repeat, description: Says it again., tags: [words], examples: [Hello]}
  reciter: {model: "parts:Recite", memory: off, system_prompt: Recite.}
  rememberer: {model: "parts:Recite"}
  failing: {model: "parts:Fail", memory: off}
  upper: {executor: "parts:Upper"}
  direct: {executor: "parts:Direct"}
"""


@dataclass
class Server:
    """A running server. `folder` is its working directory."""

    url: str
    process: subprocess.Popen[str]
    folder: Path


Serve = Callable[..., AbstractContextManager[Server]]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "retinue_server.cli", *arguments]


def environment(**more: str) -> dict[str, str]:
    """The environment without what would steer the command line from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RETINUE_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


def retinue(server: Server, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`retinue memory ...`, against this server."""
    return subprocess.run(
        command("memory", *arguments, "--url", server.url),
        capture_output=True,
        text=True,
        input=stdin,
        timeout=START_SECONDS,
        env=environment(),
        check=False,
    )


def ask(url: str, text: str, user: str = "alice") -> str:
    """What the default agent answers a user, in a conversation of its own."""
    with TaskClient(url) as task_client:
        done = task_client.send_task(message=text, metadata={"user_id": user})
    assert done.state == "completed"
    return done.text


def counted(server: Server, name: str, **labels: str) -> float:
    """The sum of the samples of /metrics with this name and these labels."""
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(one in line for one in wanted))


@contextmanager
def serve(folder: Path, config: str = CONFIG, **more: str) -> Generator[Server]:
    """Serve `config` from `folder`, until the block ends; `more` is added to the environment. Fails with what the server printed
    if it does not come up."""
    (folder / "parts.py").write_text(PARTS, encoding="utf-8")
    (folder / "retinue.yaml").write_text(config, encoding="utf-8")
    log = folder / "server.log"
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command("serve", "--config", "retinue.yaml", "--port", "0"),
            cwd=folder,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    too_late = threading.Timer(START_SECONDS, process.kill)
    too_late.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        too_late.cancel()
        assert " at http://" in line, log.read_text(encoding="utf-8")
        yield Server(line.split(" at ")[1].split()[0].rstrip("/"), process, folder)
    finally:
        too_late.cancel()
        process.terminate()
        process.communicate(timeout=START_SECONDS)


@pytest.fixture(scope="session", name="serve")
def _serve() -> Serve:
    return serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for every test that does not stop it: agents echo (the default), reciter, failing, upper, direct, ..."""
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running
