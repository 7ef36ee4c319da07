"""Clients that use the server in every way at once, and never give up a message before they know what became of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from .ledger import Ledger, Sent, View
from .script import ALWAYS_ENDS, Order

JSONObject = dict[str, Any]

NOT_CANCELABLE, UNSUPPORTED = -32002, -32004
_USERS, _CONTEXTS = 5, 3
_PUSHED = 0.3


class Refusal(Exception):
    """A JSON-RPC error."""

    def __init__(self, error: JSONObject) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: int = error["code"]


class Door:
    """Where the server is, when it is up: its address changes with every start."""

    def __init__(self) -> None:
        self._url = ""
        self._up = asyncio.Event()

    def open(self, url: str) -> None:
        self._url = url
        self._up.set()

    def close(self) -> None:
        self._up.clear()

    async def url(self) -> str:
        await self._up.wait()
        return self._url


class Client:
    """One caller after another of the same kind; `done` ends it after what it is at."""

    def __init__(
        self, name: str, seed: str, door: Door, ledger: Ledger, http: httpx.AsyncClient, receiver: str
    ) -> None:
        self.done = False
        self._name = name
        self._random = random.Random(seed)
        self._door = door
        self._ledger = ledger
        self._http = http
        self._receiver = receiver
        self._number = 0

    async def run(self) -> None:
        ways = [self.blocking, self.streaming, self.immediate, self.asking, self.canceling, self.following]
        while not self.done:
            way = self._random.choices(ways, (6, 5, 3, 2, 2, 2))[0]
            self._ledger.counts[way.__name__] += 1
            try:
                await way()
            except Refusal as refusal:
                self._ledger.violation(f"{self._name}, {way.__name__}: refused: {refusal}")

    # -- ways to use it ------------------------------------------------------------------------------------------------

    async def blocking(self) -> None:
        sent = self._new()
        self._ledger.seen(await self._send(sent))
        if self._random.random() < 0.2:
            self._ledger.counts["replays"] += 1
            await self._send(sent)

    async def streaming(self) -> None:
        sent = self._new()
        await self._watch("SendStreamingMessage", self._request(sent), sent)

    async def immediate(self) -> None:
        sent = self._new()
        task = await self._send(sent, immediately=True)
        if self._random.random() < 0.5:
            await self._watch("SubscribeToTask", {"id": task["id"]}, sent)
        else:
            self._ledger.seen(await self._call("GetTask", {"id": task["id"]}))

    async def asking(self) -> None:
        sent = self._new("ask")
        task = await self._send(sent)
        self._ledger.seen(task)
        if task["status"]["state"] == "TASK_STATE_INPUT_REQUIRED":
            answer = self._new(self._random.choice(ALWAYS_ENDS), follows=sent)
            self._ledger.seen(await self._send(answer))

    async def canceling(self) -> None:
        sent = self._new(self._random.choice(("long", "charge", "both")))
        task_id = (await self._send(sent, immediately=True))["id"]
        await asyncio.sleep(self._random.uniform(0, 0.3))
        await self._door.url()
        began = time.monotonic()
        try:
            task = await self._call("CancelTask", {"id": task_id}, once=True)
        except Refusal as refusal:
            if refusal.code != NOT_CANCELABLE:
                raise
            self._ledger.counts["cancels too late"] += 1
        except httpx.TransportError:
            self._ledger.counts["cancels cut off"] += 1
        else:
            self._ledger.slowest_cancel = max(self._ledger.slowest_cancel, time.monotonic() - began)
            self._ledger.counts["cancels done"] += 1
            self._ledger.seen(task)

    async def following(self) -> None:
        sent = self._new("long")
        await self._send(sent, immediately=True)
        answer = self._new(follows=sent)
        try:
            self._ledger.seen(await self._send(answer))
        except Refusal as refusal:
            if refusal.code != UNSUPPORTED:
                raise
            answer.refused = True
            self._ledger.counts["follow-ups too late"] += 1

    # -- the wire ------------------------------------------------------------------------------------------------------

    def _new(self, kind: str | None = None, *, follows: Sent | None = None) -> Sent:
        self._number += 1
        order = Order(f"{self._name}-{self._number}", kind or self._random.choice(ALWAYS_ENDS))
        user = follows.user if follows else f"user{self._random.randrange(_USERS)}"
        context = follows.context if follows else f"{user}-{self._random.randrange(_CONTEXTS)}-{self._name}"
        if follows is None and self._random.random() < 0.3:
            context = f"{user}-shared"
        sent = Sent(order, user, context, names=follows.task if follows else None)
        self._ledger.sent[order.id] = sent
        return sent

    def _request(self, sent: Sent, *, immediately: bool = False) -> JSONObject:
        """The same each time it is asked for: a retry must be the same message."""
        order = sent.order
        message: JSONObject = {"messageId": order.id, "role": "ROLE_USER", "parts": [{"text": order.text}]}
        message["contextId"] = sent.context
        if sent.names is not None:
            message["taskId"] = sent.names
        configuration: JSONObject = {"returnImmediately": immediately}
        if random.Random(order.id).random() < _PUSHED:
            configuration["taskPushNotificationConfig"] = {
                "id": order.id,
                "url": f"{self._receiver}/{order.id}",
                "token": order.id,
            }
        return {"message": message, "configuration": configuration, "metadata": {"user_id": sent.user}}

    async def _send(self, sent: Sent, *, immediately: bool = False) -> JSONObject:
        task: JSONObject = (await self._call("SendMessage", self._request(sent, immediately=immediately)))["task"]
        self._ledger.accepted(sent.order.id, task["id"])
        return task

    async def _call(self, method: str, params: JSONObject, *, once: bool = False) -> JSONObject:
        """The result, however often the connection breaks on the way, unless it is to be tried `once`."""
        while True:
            url = await self._door.url()
            try:
                response = await self._http.post(url, json=_rpc(method, params))
                return _result(response.json())
            except httpx.TimeoutException:
                self._ledger.violation(f"{self._name}: no answer to {method} {params}")
                raise
            except httpx.TransportError:
                self._ledger.counts["connections broken"] += 1
                if once:
                    raise
                await asyncio.sleep(0.02)

    async def _watch(self, method: str, params: JSONObject, sent: Sent) -> None:
        """Follow a task to its end, over as many streams as it takes."""
        while True:
            view = View(self._ledger, method)
            try:
                async for event in self._stream(method, params):
                    view.apply(event)
                    if view.task_id is not None:
                        self._ledger.accepted(sent.order.id, view.task_id)
            except httpx.TimeoutException:
                self._ledger.violation(f"{self._name}: nothing more comes on {method} {params}")
                raise
            except httpx.TransportError:
                self._ledger.counts["streams broken"] += 1
                if sent.task is not None and self._random.random() < 0.7:
                    method, params = "SubscribeToTask", {"id": sent.task}
                continue
            except Refusal as refusal:
                if refusal.code != UNSUPPORTED or method != "SubscribeToTask":
                    raise
                self._ledger.seen(await self._call("GetTask", params))
                return
            if not view.over:
                self._ledger.violation(
                    f"{method} of task {view.task_id}: the stream ended in {view.state or 'nothing'}"
                )
            assert view.task_id is not None
            self._ledger.seen(await self._call("GetTask", {"id": view.task_id}))
            return

    async def _stream(self, method: str, params: JSONObject) -> AsyncGenerator[JSONObject]:
        url = await self._door.url()
        async with self._http.stream("POST", url, json=_rpc(method, params)) as response:
            if not response.headers["content-type"].startswith("text/event-stream"):
                _result(json.loads(await response.aread()))
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield _result(json.loads(line.removeprefix("data:")))


def _rpc(method: str, params: JSONObject) -> JSONObject:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def _result(answer: JSONObject) -> JSONObject:
    if "error" in answer:
        raise Refusal(answer["error"])
    result: JSONObject = answer["result"]
    return result
