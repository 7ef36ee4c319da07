"""Push notifications, to a real receiver: what is sent where, how often, in which order, and where never."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from a2a.types import (
    AuthenticationInfo,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetTaskRequest,
    StreamResponse,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import InvalidParamsError
from google.protobuf.json_format import ParseDict

from retinue_memory.clock import now_us
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_server.delivery.push import Pusher
from retinue_server.delivery.url_policy import Refused, UrlPolicy
from retinue_server.runtime.store.store import Store
from retinue_server.runtime.turn import Accepted, Caller, Progress

from .actor import Actor
from .inprocess import Here, ask, begin, events, eventually, request, running

ALLOW = "push: {allow: [127.0.0.1], tries: 3}"
ANYONE = Caller("agent", "", "door", None)


@dataclass
class Call:
    """What the receiver was sent."""

    path: str
    headers: dict[str, str]
    body: Any

    @property
    def event(self) -> StreamResponse:
        return ParseDict(self.body, StreamResponse())


@dataclass
class Receiver:
    """A webhook. `answer` gives each call its status; 0: none, for as long as the test runs."""

    url: str = ""
    calls: list[Call] = field(default_factory=list[Call])
    answer: Callable[[Call], int] = lambda call: 200

    def at(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                headers: dict[str, str] = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    headers[name.strip().lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                call = Call(line.split()[1].decode(), headers, json.loads(body))
                self.calls.append(call)
                status = self.answer(call)
                if not status:
                    await reader.read()  # until the caller gives up
                    return
                more = f"Location: {self.url}/elsewhere\r\n" if 300 <= status < 400 else ""
                writer.write(f"HTTP/1.1 {status} X\r\n{more}Content-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()


@pytest.fixture
def actor() -> Actor:
    return Actor()


@pytest.fixture
async def here(tmp_path: Path, actor: Actor) -> AsyncIterator[Here]:
    async with running(tmp_path, {"actor": actor}, ALLOW) as server:
        yield server


def states(calls: list[Call]) -> list[TaskState]:
    """The states that were told, in the order in which they came."""
    found: list[TaskState] = []
    for call in calls:
        kind = call.event.WhichOneof("payload")
        if kind != "artifact_update":
            found.append(call.event.task.status.state if kind == "task" else call.event.status_update.status.state)
    return found


async def test_a_push_is_a_stream_response(here: Here, receiver: Receiver) -> None:
    """Task, status and artifact updates as they are streamed, with token and Authorization (spec 1.0, section 4.3.3)."""
    sent = request("work say:one say:two done")
    sent.configuration.task_push_notification_config.CopyFrom(
        TaskPushNotificationConfig(
            url=f"{receiver.url}/hook?x=1",
            token="t0ken",
            authentication=AuthenticationInfo(scheme="Bearer", credentials="s3cret"),
        )
    )
    heard = await events(await here.client(streaming=True), sent)
    await eventually(lambda: TaskState.TASK_STATE_COMPLETED in states(receiver.calls), "pushed")
    assert {call.path for call in receiver.calls} == {"/hook?x=1"}
    for call in receiver.calls:
        assert call.headers["x-a2a-notification-token"] == "t0ken"
        assert call.headers["authorization"] == "Bearer s3cret"
        assert call.headers["content-type"] == "application/a2a+json"
        assert call.headers["host"] == receiver.url.removeprefix("http://")
    pushed = [call.event for call in receiver.calls]
    assert pushed[0] == heard[0]
    assert pushed[-1] == heard[-1]
    said = [event.artifact_update.artifact.parts[0].text for event in pushed if event.HasField("artifact_update")]
    assert "".join(said) == "onetwo"


async def test_every_config_hears_everything_in_order(here: Here, receiver: Receiver) -> None:
    """Several of a task, also one that came later, over all its turns, and the cancel at its end; a deleted one no more."""
    client = await here.client()
    task = await ask(client, request("ask"))
    for name in ("a", "b", "gone"):
        await client.create_task_push_notification_config(
            TaskPushNotificationConfig(task_id=task.id, id=name, url=f"{receiver.url}/{name}")
        )
    await client.delete_task_push_notification_config(
        DeleteTaskPushNotificationConfigRequest(task_id=task.id, id="gone")
    )
    for _ in range(3):
        await ask(client, request("work ask", task_id=task.id))
    await client.cancel_task(CancelTaskRequest(id=task.id))
    expected = [TaskState.TASK_STATE_WORKING, TaskState.TASK_STATE_INPUT_REQUIRED] * 3
    expected.append(TaskState.TASK_STATE_CANCELED)
    for path in ("/a", "/b"):
        await eventually(lambda path=path: len(receiver.at(path)) == len(expected), "pushed")
        assert states(receiver.at(path)) == expected
    assert not receiver.at("/gone")


async def test_a_config_that_comes_while_the_task_runs_hears_the_rest(
    here: Here, receiver: Receiver, actor: Actor
) -> None:
    """What its turn says from then on."""
    client = await here.client()
    task = await begin(client, request("work wait:go say:late done"))
    await eventually(lambda: actor.running == 1, "at work")
    await client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=task.id, url=f"{receiver.url}/late")
    )
    actor.gate("go").set()
    await eventually(lambda: TaskState.TASK_STATE_COMPLETED in states(receiver.calls), "pushed")


async def test_a_failed_push_is_tried_again_and_nothing_overtakes_it(here: Here, receiver: Receiver) -> None:
    """500 and silence are failures; the next of the same config waits, another config does not."""
    fails = iter([500, 503])
    receiver.answer = lambda call: next(fails, 200) if call.path == "/flaky" else 200
    client = await here.client()
    task = await ask(client, request("ask"))
    for name in ("flaky", "fine"):
        await client.create_task_push_notification_config(
            TaskPushNotificationConfig(task_id=task.id, id=name, url=f"{receiver.url}/{name}")
        )
    await ask(client, request("work done", task_id=task.id))
    await eventually(lambda: len(receiver.at("/flaky")) == 4, "tried again")
    first, again, once_more, last = receiver.at("/flaky")
    assert first.body == again.body == once_more.body != last.body
    assert states([once_more, last]) == states(receiver.at("/fine"))


async def test_a_push_that_keeps_failing_is_given_up(here: Here, receiver: Receiver) -> None:
    """After `push.tries`; it is kept as dead with its reason, and the next one goes out."""
    receiver.answer = lambda call: 500 if states([call]) == [TaskState.TASK_STATE_WORKING] else 200
    client = await here.client()
    task = await ask(client, request("ask"))
    await client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=task.id, url=f"{receiver.url}/x")
    )
    await ask(client, request("work done", task_id=task.id))
    await eventually(lambda: TaskState.TASK_STATE_COMPLETED in states(receiver.calls), "the next one came")
    assert states(receiver.calls)[:3] == [TaskState.TASK_STATE_WORKING] * 3
    assert len(receiver.calls) == 4
    await eventually(lambda: _rows(here, (1, 3, "HTTP 500")), "one is dead, and nothing is owed")


async def _rows(here: Here, *expected: tuple[int, int, str]) -> bool:
    select = "SELECT dead, tries, problem FROM push_outbox"
    return await here.server.store.database.read(lambda db: db.execute(select).fetchall()) == list(expected)


async def test_pushes_survive_a_restart(tmp_path: Path, receiver: Receiver) -> None:
    """What was owed when the server stopped is delivered by the next."""
    receiver.answer = lambda call: 500
    config = "push: {allow: [127.0.0.1]}"
    async with running(tmp_path, {"actor": Actor()}, config) as here:
        sent = request("done")
        sent.configuration.task_push_notification_config.url = f"{receiver.url}/x"
        task = await ask(await here.client(), sent)
        await eventually(lambda: bool(receiver.calls), "tried")
    receiver.answer = lambda call: 200
    receiver.calls.clear()
    async with running(tmp_path, {"actor": Actor()}, config) as here:
        await eventually(lambda: TaskState.TASK_STATE_COMPLETED in states(receiver.calls), "delivered")
        assert (await (await here.client()).get_task(GetTaskRequest(id=task.id))).id == task.id


async def test_a_redirect_is_not_followed(here: Here, receiver: Receiver) -> None:
    """It could lead anywhere: it is a failure like any other."""
    receiver.answer = lambda call: 307
    sent = request("done")
    sent.configuration.task_push_notification_config.url = f"{receiver.url}/x"
    await ask(await here.client(), sent)
    await eventually(lambda: len(receiver.calls) >= 2, "tried again")
    assert not receiver.at("/elsewhere")


async def test_a_silent_webhook_holds_up_nobody(here: Here, receiver: Receiver) -> None:
    """Neither the stream nor the pushes of others, however many wait for it."""
    receiver.answer = lambda call: 0 if call.path == "/silent" else 200
    streaming = await here.client(streaming=True)

    async def send(path: str) -> list[StreamResponse]:
        sent = request("work say:x done")
        sent.configuration.task_push_notification_config.url = f"{receiver.url}{path}"
        return await events(streaming, sent)

    before = time.monotonic()
    heard = await asyncio.gather(*(send("/silent") for _ in range(30)))
    assert all(found[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED for found in heard)
    await send("/fine")
    await eventually(lambda: TaskState.TASK_STATE_COMPLETED in states(receiver.at("/fine")), "pushed", 5)
    assert time.monotonic() - before < 8  # one delivery may take 10 s
    assert 1 <= len(receiver.at("/silent")) <= 4


# -- the pusher itself ---------------------------------------------------------------------------------------------------


class Names(UrlPolicy):
    """A screen for which names resolve as the test says."""

    def __init__(self, *allow: str, **names: list[str]) -> None:
        super().__init__(allow)
        self.names = names
        self.asked: list[str] = []

    async def addresses(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host in self.names:
            return self.names[host]
        return await super().addresses(host, port)


@asynccontextmanager
async def pushing(folder: Path, screen: UrlPolicy, **options: Any) -> AsyncGenerator[tuple[Store, Pusher]]:
    database = SQLiteDatabase(folder / "push.db")
    store = Store.over(database)
    await asyncio.to_thread(store.migrate)
    pusher = Pusher(store.push, screen, **options)
    await pusher.start()
    try:
        yield store, pusher
    finally:
        await pusher.stop()
        await database.aclose()


async def owe(store: Store, url: str, *numbers: int) -> Accepted:
    """A task that has ended and owes a push for each number."""
    sent = request()
    sent.configuration.task_push_notification_config.CopyFrom(TaskPushNotificationConfig(url=url, id=uuid.uuid4().hex))
    found = await store.turns.accept(ANYONE, sent, user=None)
    payloads = [StreamResponse(task=found.task) for _ in numbers]
    for payload, number in zip(payloads, numbers, strict=True):
        payload.task.metadata["number"] = number
    pushes = [payload.SerializeToString() for payload in payloads]
    state = TaskState.TASK_STATE_COMPLETED
    snapshot = found.task.SerializeToString()
    await store.turns.record(
        Progress(found.turn, state=state, status_at=now_us(), snapshot=snapshot, generation=1, pushes=pushes, done=True)
    )
    return found


async def test_the_delay_grows(tmp_path: Path, receiver: Receiver) -> None:
    """Each try comes later after the one before, each by a random part less than the doubled delay."""
    times: list[float] = []

    def fail(call: Call) -> int:
        times.append(time.monotonic())
        return 500

    receiver.answer = fail
    async with pushing(tmp_path, UrlPolicy(["127.0.0.1"]), tries=5, first_delay_s=0.05) as (store, pusher):
        await owe(store, f"{receiver.url}/x", 1)
        pusher.wake()
        await eventually(lambda: len(times) == 5, "tried")
    waits = [later - sooner for sooner, later in pairwise(times)]
    for tries, wait in enumerate(waits):
        assert wait >= 0.05 * 2**tries * 0.5


async def test_a_url_that_keeps_failing_is_left_alone(tmp_path: Path, receiver: Receiver) -> None:
    """After five failures in a row nothing goes there for a while, of any task; no try is counted; others go on."""
    receiver.answer = lambda call: 500 if call.path == "/down" else 200
    async with pushing(tmp_path, UrlPolicy(["127.0.0.1"]), tries=20, first_delay_s=0.01) as (store, pusher):
        for number in range(12):
            await owe(store, f"{receiver.url}/down", number)
        pusher.wake()
        await eventually(lambda: len(receiver.at("/down")) >= 5, "tried")
        await owe(store, f"{receiver.url}/up", 1, 2, 3)
        pusher.wake()
        await eventually(lambda: len(receiver.at("/up")) == 3, "pushed")
        await eventually(lambda: _all_later(store), "left alone")
        assert 5 <= len(receiver.at("/down")) <= 8  # four may be under way at once
        assert [call.body["task"]["metadata"]["number"] for call in receiver.at("/up")] == [1, 2, 3]


async def _all_later(store: Store) -> bool:
    at = await store.push.next_push()
    return at is not None and at > now_us() + 10_000_000


@pytest.mark.parametrize("path", ["silent", "silent?{}"], ids=["one address", "many of one host"])
async def test_those_who_are_silent_hold_up_nobody_however_many_they_are(
    tmp_path: Path, receiver: Receiver, path: str
) -> None:
    """More than are looked at together, or sent at once: another host's push goes out all the same."""
    receiver.answer = lambda call: 0
    other = Receiver()
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    async with pushing(tmp_path, UrlPolicy(["127.0.0.1"])) as (store, pusher):
        await asyncio.gather(*(owe(store, f"{receiver.url}/{path.format(n)}", 1) for n in range(600)))
        pusher.wake()
        await eventually(lambda: len(receiver.calls) >= 4, "sent")
        await owe(store, f"http://127.0.0.1:{port}/fine", 1)
        pusher.wake()
        await eventually(lambda: len(other.calls) == 1, "pushed", 6)  # one delivery may take 10 s
    server.close()


async def test_many_tasks_are_pushed_each_in_order(tmp_path: Path, receiver: Receiver) -> None:
    """Nothing is lost, nothing is sent twice, each config's in the order in which it happened."""
    async with pushing(tmp_path, UrlPolicy(["127.0.0.1"])) as (store, pusher):
        for number in range(60):
            await owe(store, f"{receiver.url}/{number % 7}/{number}", 1, 2, 3)
            pusher.wake()
        await eventually(lambda: len(receiver.calls) >= 180, "pushed")
        for number in range(60):
            calls = receiver.at(f"/{number % 7}/{number}")
            assert [call.body["task"]["metadata"]["number"] for call in calls] == [1, 2, 3]
        await eventually(lambda: _nothing(store), "nothing is owed any more")
    assert len(receiver.calls) == 180


async def _nothing(store: Store) -> bool:
    return await store.push.next_push() is None


async def test_one_that_cannot_be_sent_stops_nothing(tmp_path: Path, receiver: Receiver) -> None:
    """A config from before its check was as strict, an answer that is not HTTP, a host that is gone: failures like others."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x01 not HTTP\r\n\r\n")
        writer.close()

    other = await asyncio.start_server(rude, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    async with other, pushing(tmp_path, UrlPolicy(["127.0.0.1", "nowhere.invalid"]), tries=1) as (store, pusher):
        for url in (
            f"http://127.0.0.1:{port}/",
            "http://127.0.0.1:1/",
            "http://nowhere.invalid/",
            "http://é/",
            "ftp://127.0.0.1/x",
            "http://127.0.0.1:1/\n",
        ):
            await owe(store, url, 1)
        broken = await owe(store, f"{receiver.url}/x", 1)
        config = TaskPushNotificationConfig(task_id=broken.task.id, id="odd", url=f"{receiver.url}/odd", token="é\n")
        await store.push.set_push_config(ANYONE, config)
        await owe(store, f"{receiver.url}/fine", 1)
        pusher.wake()
        await eventually(lambda: bool(receiver.at("/fine")), "pushed")
        await eventually(lambda: _nothing(store), "the others are given up")


# -- where it may go -----------------------------------------------------------------------------------------------------

REFUSED = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://localhost/",
    "http://LOCALHOST:8080/",
    "http://0.0.0.0/",
    "http://0/",
    "http://10.0.0.1/",
    "http://172.16.5.4/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.1.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://240.0.0.1/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::127.0.0.1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25lo]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://[2002:7f00:1::]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://192.0.0.192/opc/v2/instance/",
    "http://168.63.129.16/machine",
    "http://[fec0::1]/",
    "http://[3fff::1]/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "http://user@93.184.216.34/",
    "http://user:password@93.184.216.34/",
    "http://@93.184.216.34/",
    "http://93.184.216.34@127.0.0.1/",
    "http://93.184.216.34:99999/",
    "http://93.184.216.34:x/",
    "http://[::1/",
    "http:///x",
    "http://",
    "//93.184.216.34/",
    "93.184.216.34",
    "ftp://93.184.216.34/",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "javascript:alert(1)",
    "http://93.184.216.34/a b",
    "http://93.184.216.34/\r\nX: y",
    "http://93.184.216.34/é",
    "http://é.example/",
    "http://\u0000/",
    "http://mixed/",
    "http://.../",
    "http://" + "a" * 300 + "/",
]


@pytest.mark.parametrize("url", REFUSED)
async def test_urls_that_may_not_be_called(url: str) -> None:
    """Refused when set, whatever they are written like; a name is refused for the worst of its addresses."""
    screen = Names(mixed=["93.184.216.34", "10.0.0.1"])
    with pytest.raises(Refused):
        await screen.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.216.34/",
        "https://93.184.216.34:8443/x?y=z#f",
        "http://[2606:2800:220:1:248:1893:25c8:1946]/",
        "http://public/",
        "http://10.1.2.3/",
        "http://inside/",
        "http://INSIDE/",
    ],
)
async def test_urls_that_may_be_called(url: str) -> None:
    """Public addresses, and the hosts and networks that the configuration allows."""
    screen = Names("10.1.0.0/16", "inside", public=["93.184.216.34"], inside=["10.9.9.9"], INSIDE=["10.9.9.9"])
    await screen.check(url)


async def test_a_name_that_changes_its_mind_is_refused_when_it_is_called(tmp_path: Path, receiver: Receiver) -> None:
    """Public when it was set, private when it is called: no connection is made; resolved once for each connection."""
    screen = Names(rebind=["93.184.216.34"])
    port = receiver.url.rpartition(":")[2]
    async with pushing(tmp_path, screen, tries=1) as (store, pusher):
        config = TaskPushNotificationConfig(url=f"http://rebind:{port}/x")
        await pusher.check(config)
        screen.names["rebind"] = ["127.0.0.1"]
        await owe(store, config.url, 1)
        pusher.wake()
        await eventually(lambda: _nothing(store), "given up")
    assert not receiver.calls
    assert screen.asked == ["rebind", "rebind"]


async def test_it_connects_to_the_address_that_was_screened(tmp_path: Path, receiver: Receiver) -> None:
    """Not to the name, which could be resolved again to something else; the Host header is the name."""
    screen = Names("127.0.0.0/8", hook=["127.0.0.1"])
    port = receiver.url.rpartition(":")[2]
    async with pushing(tmp_path, screen) as (store, pusher):
        await owe(store, f"http://hook:{port}/x", 1)
        pusher.wake()
        await eventually(lambda: bool(receiver.calls), "pushed")
    assert receiver.calls[0].headers["host"] == f"hook:{port}"
    assert screen.asked == ["hook"]


@pytest.mark.parametrize("how", ["message", "config"])
async def test_a_bad_config_is_refused_when_it_is_set(here: Here, how: str) -> None:
    """InvalidParams, before anything is stored: URL, token, credentials and id."""
    client = await here.client()
    task = await ask(client, request("ask"))
    good = "http://127.0.0.1:9/"
    for config in (
        TaskPushNotificationConfig(url="http://169.254.169.254/"),
        TaskPushNotificationConfig(url=""),
        TaskPushNotificationConfig(url=good, token="a\r\nX-Evil: 1"),
        TaskPushNotificationConfig(url=good, token="é"),
        TaskPushNotificationConfig(url=good, authentication=AuthenticationInfo(scheme="Bearer", credentials="a\nb")),
        TaskPushNotificationConfig(url=good, id="a\nb"),
        TaskPushNotificationConfig(url=good, id="x" * 1000),
    ):
        sent = request("done", task_id=task.id)
        sent.configuration.task_push_notification_config.CopyFrom(config)
        config.task_id = task.id
        setting = client.create_task_push_notification_config(config) if how == "config" else ask(client, sent)
        with pytest.raises(InvalidParamsError):
            await setting
    found = await client.get_task(GetTaskRequest(id=task.id))
    assert found.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
