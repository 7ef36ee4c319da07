"""What the clients were told, and what of it broke a promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .script import Order, may_say

JSONObject = dict[str, Any]

TERMINAL = {"TASK_STATE_COMPLETED", "TASK_STATE_FAILED", "TASK_STATE_CANCELED", "TASK_STATE_REJECTED"}
INTERRUPTED = {"TASK_STATE_INPUT_REQUIRED", "TASK_STATE_AUTH_REQUIRED"}
MAY_FAIL_FOR = ("outcome unknown", "the server stopped 3 times")
"""The two reasons that a crash gives a task to fail."""


@dataclass(slots=True)
class Sent:
    """A message that a client sends until it is told what became of it."""

    order: Order
    user: str
    context: str
    names: str | None = None
    """The task that it follows up."""
    task: str | None = None
    """The task it was accepted for, as the server told."""
    refused: bool = False


@dataclass(slots=True)
class Ledger:
    sent: dict[str, Sent] = field(default_factory=dict[str, Sent])
    ended: dict[str, str] = field(default_factory=dict[str, str])
    """The terminal state of each task that a client saw end."""
    violations: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    slowest_cancel: float = 0.0

    @property
    def acknowledged(self) -> set[str]:
        return {sent.task for sent in self.sent.values() if sent.task is not None}

    def violation(self, text: str) -> None:
        self.violations.append(text)

    def accepted(self, message_id: str, task_id: str) -> None:
        sent = self.sent[message_id]
        if sent.task not in (None, task_id):
            self.violation(f"{message_id}: was task {sent.task}, a replay answers with {task_id}")
        sent.task = task_id

    def seen(self, task: JSONObject) -> None:
        """Check a whole task that a client was shown."""
        task_id, state = task["id"], task["status"]["state"]
        told = [part for message in task.get("history", ()) for part in message["parts"]]
        ids = [message["messageId"] for message in task.get("history", ()) if message["role"] == "ROLE_USER"]
        if not told or len(set(ids)) != len(ids):
            self.violation(f"task {task_id}: its history is {ids}")
        before = self.ended.get(task_id)
        if before is not None and before != state:
            self.violation(f"task {task_id}: was {before}, is {state}")
        if state in TERMINAL:
            self.ended[task_id] = state
        said = {artifact["artifactId"].removeprefix("answer-"): text_of(artifact) for artifact in artifacts(task)}
        for message_id, text in said.items():
            sent = self.sent.get(message_id)
            if sent is None or not may_say(sent.order, text):
                self.violation(f"task {task_id}: {message_id} says {text!r}")
        if state == "TASK_STATE_COMPLETED":
            for message_id in ids:
                sent = self.sent.get(message_id)
                if sent is None or (sent.order.kind != "ask" and said.get(message_id) != sent.order.answer):
                    self.violation(f"task {task_id}: completed, but {message_id} says {said.get(message_id)!r}")
        if state == "TASK_STATE_FAILED" and not reason_of(task["status"]).startswith(MAY_FAIL_FOR):
            self.violation(f"task {task_id}: failed: {reason_of(task['status'])}")


class View:
    """A task as the events of one stream, or of one push config, leave it. What cannot be is a violation."""

    def __init__(self, ledger: Ledger, what: str, task_id: str | None = None) -> None:
        self._ledger = ledger
        self._what = what
        self.task_id = task_id
        """None: it has to begin with the task."""
        self.state = ""
        self.texts: dict[str, str] = {}

    @property
    def over(self) -> bool:
        return self.state in TERMINAL | INTERRUPTED

    def apply(self, event: JSONObject) -> None:
        kind, value = next(iter(event.items()))
        if self.state in TERMINAL:
            self._wrong(f"{kind} after the end")
        if kind == "task":
            self.task_id = value["id"]
            self.texts = {artifact["artifactId"]: text_of(artifact) for artifact in artifacts(value)}
            self._moved(value["status"])
        elif self.task_id is None:
            self._wrong(f"begins with {kind}")
        elif kind == "statusUpdate":
            self._moved(value["status"])
        else:
            self._said(value)

    def _said(self, update: JSONObject) -> None:
        artifact_id, text = update["artifact"]["artifactId"], text_of(update["artifact"])
        if update.get("append"):
            if artifact_id not in self.texts:
                self._wrong(f"appends to {artifact_id}, which it never began")
            text = self.texts.get(artifact_id, "") + text
        self.texts[artifact_id] = text
        sent = self._ledger.sent.get(artifact_id.removeprefix("answer-"))
        if sent is None or not may_say(sent.order, text):
            self._wrong(f"{artifact_id} out of order: {text!r}")

    def _moved(self, status: JSONObject) -> None:
        self.state = status["state"]
        if self.task_id is not None and self.state in TERMINAL:
            before = self._ledger.ended.setdefault(self.task_id, self.state)
            if before != self.state:
                self._wrong(f"ended {self.state}, was {before}")

    def _wrong(self, problem: str) -> None:
        self._ledger.violation(f"{self._what} of task {self.task_id}: {problem}")


def artifacts(task: JSONObject) -> list[JSONObject]:
    found: list[JSONObject] = task.get("artifacts", [])
    return found


def text_of(parted: JSONObject) -> str:
    return "".join(part.get("text", "") for part in parted.get("parts", ()))


def reason_of(status: JSONObject) -> str:
    return text_of(status.get("message", {}))
