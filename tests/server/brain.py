"""What a served agent thinks with, kept outside of the server: a web server of the test's own that outlives it.

`PARTS` is the module that a configuration names: model, tools, memory; each asks the `Brain` of its test for everything.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECONDS = 30.0
"""How long anything here may take."""

PARTS = '''
import json
import time
import uuid
from pathlib import Path

import httpx
from a2a.server.agent_execution import AgentExecutor
from a2a.types import Message as A2AMessage
from a2a.types import Part, Role, Task, TaskState, TaskStatus, TaskStatusUpdateEvent
from retinue_agents import NeedInput, ToolContext, tool
from retinue_memory import ChatModel, Memory, Message, ModelDelta, ToolCall

URL = Path("brain.url").read_text(encoding="utf-8")


class Model(ChatModel):
    name = "brain"

    async def stream(self, messages, *, tools=(), schema=None, **settings):
        asked = max(place for place, message in enumerate(messages) if message.role == "user")
        step = 1 + sum(message.role == "assistant" for message in messages[asked:])
        prompt = [[message.role, message.content] for message in messages]
        body = {"prompt": prompt, "step": step, "tools": [tool.name for tool in tools]}
        async with httpx.AsyncClient(timeout=60) as http, http.stream("POST", f"{URL}/ask", json=body) as answer:
            async for line in answer.aiter_lines():
                said = json.loads(line)
                if "tool" in said:
                    yield ModelDelta(tool_calls=(ToolCall(said["tool"], said["tool"], said.get("arguments", {})),))
                else:
                    yield ModelDelta(said["text"])


async def post(path, body):
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(f"{URL}/{path}", json=body)
        answer.raise_for_status()
        return answer.text


@tool
async def look(*, context: ToolContext) -> str:
    """Look."""
    return await post("look", {"key": context.key})


@tool(retry="never")
async def pay(*, context: ToolContext) -> str:
    """Pay."""
    return await post("pay", {"key": context.key})


@tool
def sleep(*, context: ToolContext) -> str:
    """Sleep in a thread, where nobody can be cancelled."""
    httpx.post(f"{URL}/sleep", json={}, timeout=5)
    time.sleep(60)
    return "slept"


class Asker(AgentExecutor):
    """Asks, and takes its time to end; answers in capitals."""

    async def execute(self, context, queue):
        ids = {"task_id": context.task_id, "context_id": context.context_id}
        if context.current_task is None:
            await queue.enqueue_event(
                Task(id=context.task_id, context_id=context.context_id, history=[context.message])
            )
            state, text = TaskState.TASK_STATE_INPUT_REQUIRED, "which one?"
            if context.get_user_input() == "my mail":
                state, text = TaskState.TASK_STATE_AUTH_REQUIRED, ""
        else:
            state, text = TaskState.TASK_STATE_COMPLETED, context.get_user_input().upper()
        said = A2AMessage(message_id=str(uuid.uuid4()), role=Role.ROLE_AGENT, parts=[Part(text=text)])
        status = TaskStatus(state=state, message=said if text else None)
        await queue.enqueue_event(TaskStatusUpdateEvent(status=status, **ids))
        await post("asked", {})

    async def cancel(self, context, queue):
        pass


class Remote(Memory):
    name = "remote"

    async def retrieve(self, query, *, top_k=5, **kwargs):
        return []

    async def update(self, messages, **kwargs):
        said = [message.content for message in messages]
        await post("remember", {"turn": kwargs["ctx"].turn_id, "said": said})
'''

CONFIG = """\
server: {grace: 0.3}
push: {allow: [127.0.0.1]}
memory:
  default: {embedder: off}
  remote: {backend: "thinking:Remote"}
agents:
  thinker:
    default: true
    model: "thinking:Model"
    tools: ["thinking:look", "thinking:pay", "thinking:sleep"]
    memory: off
  rememberer: {model: "thinking:Model"}
  remote: {model: "thinking:Model", memory: remote}
  asker: {executor: "thinking:Asker"}
"""


@dataclass(frozen=True, slots=True)
class Call:
    """What the server wants: `what` is the path (ask, look, pay, remember, push/...), `number` counts from 1 for each."""

    what: str
    number: int
    body: dict[str, Any]


Line = dict[str, Any]
Script = Callable[[Call], Iterable[Line]]


def text(*words: str) -> Iterable[Line]:
    return [{"text": word} for word in words]


class Brain:
    """Answers as its `script` says: with a line at a time, and where that blocks, so does the server's call."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.script: Script = lambda call: text("fine")
        self._changed = threading.Condition()
        self._ending = threading.Event()

    def of(self, what: str) -> list[Call]:
        return [call for call in self.calls if call.what == what]

    def wait_for(self, what: str, number: int = 1) -> Call:
        """The call of this number; waits until it is made."""
        with self._changed:
            made = self._changed.wait_for(lambda: len(self.of(what)) >= number, SECONDS)
        assert made, f"{what} was called {len(self.of(what))} times, not {number}: {self.calls}"
        return self.of(what)[number - 1]

    def hang(self) -> Iterator[Line]:
        """Say nothing more until the test ends."""
        self._ending.wait(SECONDS * 2)
        yield from ()

    @contextmanager
    def serving(self, folder: Path) -> Generator[Brain]:
        """Listen, and put into `folder` what a server needs to find this brain."""
        brain = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                lines = iter(brain.script(brain.heard(self.path.removeprefix("/"), body)))
                try:
                    first = next(lines, None)
                    self.send_response(503 if first == REFUSE else 200)
                    self.end_headers()
                    while first is not None:
                        self.wfile.write(json.dumps(first).encode() + b"\n")
                        self.wfile.flush()
                        first = next(lines, None)
                except OSError:
                    pass  # the server died, or does not want to know any more

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the server died while it asked

        with Listener(("127.0.0.1", 0), Handler) as listener:
            self.url = f"http://127.0.0.1:{listener.server_port}"
            (folder / "brain.url").write_text(self.url, encoding="utf-8")
            (folder / "thinking.py").write_text(PARTS, encoding="utf-8")
            thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield self
            finally:
                self._ending.set()
                listener.shutdown()
                thread.join()

    def heard(self, what: str, body: dict[str, Any]) -> Call:
        with self._changed:
            call = Call(what, len(self.of(what)) + 1, body)
            self.calls.append(call)
            self._changed.notify_all()
        return call


REFUSE: Line = {"refuse": True}
"""As the first line of an answer: HTTP 503."""


def eventually(holds: Callable[[], Any], what: str) -> Any:
    """What `holds` returns once that is true; asks again until it is too late."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {SECONDS:g} s: {what}")
