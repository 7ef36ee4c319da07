"""What is not the protocol: whatever is sent, the answer is a protocol's error, soon, and says nothing of the server's inside."""

from __future__ import annotations

import copy
import json
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import Server

SECONDS = 10.0
INSIDE = re.compile(
    r"Traceback|File \"|site-packages|\.py\b|retinue_server|retinue_memory|object at 0x"
    r"|[a-z]Error\(|sqlite3?\.|/(?:tmp|root|home)/"
)
"""What shows that something of the server's inside got out."""
NEW, OLD = {"A2A-Version": "1.0"}, {"A2A-Version": "0.3"}
JSON_TYPE = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        yield client


@pytest.fixture(autouse=True)
def _it_still_answers(http: httpx.Client) -> Iterator[None]:
    yield
    answered = http.post("/", json=call("SendMessage", message=message()), headers=NEW)
    assert answered.json()["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"


def message(**fields: Any) -> dict[str, Any]:
    return {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "hello"}]} | fields


def old_message(**fields: Any) -> dict[str, Any]:
    said = {"kind": "message", "messageId": uuid.uuid4().hex, "role": "user"}
    return said | {"parts": [{"kind": "text", "text": "hello"}]} | fields


def call(method: str, /, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def as_json(value: Any) -> bytes:
    """JSON as a careless client writes it: lone surrogates and all."""
    return json.dumps(value, allow_nan=True).encode()


def rpc(http: httpx.Client, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Post to JSON-RPC, hold the answer to the protocol, and return it."""
    answered = http.post("/", content=body, headers=JSON_TYPE | (NEW if headers is None else headers))
    assert answered.status_code < 500
    assert not INSIDE.search(answered.text), answered.text
    if answered.headers["content-type"].startswith("text/event-stream"):
        lines = [line for line in answered.text.splitlines() if line.startswith("data:")]
        return dict(json.loads(lines[-1].removeprefix("data:")))
    found: dict[str, Any] = answered.json()
    assert found["jsonrpc"] == "2.0"
    assert ("result" in found) != ("error" in found)
    if "error" in found:
        assert isinstance(found["error"]["message"], str)
        assert -32768 <= found["error"]["code"] <= -32000
        assert found["error"]["code"] != -32603, found
    return found


def refused(http: httpx.Client, body: bytes, headers: dict[str, str] | None = None) -> int:
    """The code of the error that the answer must be."""
    found = rpc(http, body, headers)
    assert "error" in found, found
    code: int = found["error"]["code"]
    return code


def rest(http: httpx.Client, method: str, path: str, body: bytes | None = None) -> httpx.Response:
    """Call REST and hold the answer to the protocol: below 500, and an error as google.rpc has it."""
    answered = http.request(method, path, content=body, headers=JSON_TYPE | NEW)
    assert answered.status_code < 500, answered.text
    assert not INSIDE.search(answered.text), answered.text
    if answered.status_code >= 400:
        error: Any = answered.json()["error"]
        if answered.status_code not in (404, 405) or isinstance(error, dict):
            assert error["code"] == answered.status_code
            assert isinstance(error["status"], str)
            assert isinstance(error["message"], str)
            assert error["details"][0]["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    return answered


GOOD = as_json(call("SendMessage", message={"messageId": "1", "role": "ROLE_USER", "parts": [{"text": "hello"}]}))
NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "blank": b"   ",
    "truncated": GOOD[:-10],
    "cut in a string": GOOD[:40],
    "trailing": GOOD + b"x",
    "two": GOOD + GOOD,
    "not a number": GOOD.replace(b'"hello"', b"NaN"),
    "infinite": GOOD.replace(b'"hello"', b"Infinity"),
    "minus infinity": GOOD.replace(b'"id": 1', b'"id": -Infinity'),
    "a key twice": GOOD.replace(b'"id": 1', b'"id": 1, "id": 2'),
    "a key twice deep inside": GOOD.replace(b'"text": "hello"', b'"text": "hello", "text": "bye"'),
    "not UTF-8": GOOD.replace(b"hello", b"\xff\xfe"),
    "overlong UTF-8": GOOD.replace(b"hello", b"\xc0\xaf"),
    "a surrogate in UTF-8": GOOD.replace(b"hello", b"\xed\xa0\x80"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "NUL": GOOD.replace(b"hello", b"\x00"),
    "NUL around": b"\x00" + GOOD,
    "a raw line end in a string": GOOD.replace(b"hello", b"hel\nlo"),
    "single quotes": GOOD.replace(b'"', b"'"),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "closed deep lists": b"[" * 100_000 + b"]" * 100_000,
    "XML": b"<?xml version='1.0'?><a/>",
    "a form": b"jsonrpc=2.0&method=SendMessage",
    "a bomb of digits": b"1" * 100_000,
    "a huge exponent": GOOD.replace(b'"id": 1', b'"id": 1e999999'),
}


@pytest.mark.parametrize("headers", [NEW, OLD, {}], ids=["1.0", "0.3", "none"])
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_a_parse_error(http: httpx.Client, body: bytes, headers: dict[str, str]) -> None:
    """-32700 or -32600, with id null, on the address that speaks both versions."""
    found = rpc(http, body, headers)
    assert found["error"]["code"] in (-32700, -32600)
    assert found["id"] is None


@pytest.mark.parametrize(
    "path", ["/rest/message:send", "/rest/message:stream", "/rest/tasks/x/pushNotificationConfigs"]
)
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_rest_refuses_what_is_not_json(http: httpx.Client, body: bytes, path: str) -> None:
    """400 with the payload that REST errors have."""
    assert rest(http, "POST", path, body).status_code == 400


NOT_A_CALL: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "a string": "SendMessage",
    "true": True,
    "an empty list": [],
    "a batch": [call("GetTask", id="x"), call("GetTask", id="y")],
    "an empty object": {},
    "no version": {"id": 1, "method": "GetTask", "params": {"id": "x"}},
    "another version": call("GetTask", id="x") | {"jsonrpc": "1.0"},
    "a version that is a number": call("GetTask", id="x") | {"jsonrpc": 2.0},
    "no method": {"jsonrpc": "2.0", "id": 1, "params": {}},
    "a method that is a number": call("GetTask") | {"method": 5},
    "a method that is null": call("GetTask") | {"method": None},
    "a method that is a list": call("GetTask") | {"method": ["SendMessage"]},
    "an empty method": call(""),
    "an unknown method": call("Shout"),
    "a private method": call("__init__"),
    "another case": call("sendmessage", message=message()),
    "an id that is a list": call("GetTask", id="x") | {"id": [1]},
    "an id that is an object": call("GetTask", id="x") | {"id": {"a": 1}},
    "an id that is true": call("GetTask", id="x") | {"id": True},
    "an id that is a fraction": call("GetTask", id="x") | {"id": 1.5},
    "an id that is a surrogate": call("GetTask", id="x") | {"id": "\ud800"},
    "a giant id": call("GetTask", id="x") | {"id": "x" * 100_000},
    "a giant number as id": call("GetTask", id="x") | {"id": 10**4000},
    "a surrogate as method": call("\ud800"),
}
METHODS = [
    *("SendMessage", "SendStreamingMessage", "GetTask", "ListTasks", "CancelTask", "SubscribeToTask"),
    *(f"{verb}TaskPushNotificationConfig" for verb in ("Create", "Get", "Delete")),
    *("ListTaskPushNotificationConfigs", "GetExtendedAgentCard"),
]
OLD_METHODS = [
    *("message/send", "message/stream", "tasks/get", "tasks/cancel", "tasks/resubscribe"),
    *(f"tasks/pushNotificationConfig/{verb}" for verb in ("set", "get", "list", "delete")),
    "agent/getAuthenticatedExtendedCard",
]


@pytest.mark.parametrize("body", NOT_A_CALL.values(), ids=NOT_A_CALL)
def test_what_is_not_a_call_is_refused(http: httpx.Client, body: Any) -> None:
    """An invalid request, an unknown method, or, where the rest is fine, another version, a task that is not there."""
    for headers in (NEW, OLD):
        assert refused(http, as_json(body), headers) in (-32700, -32600, -32601, -32602, -32001, -32009)


NOT_PARAMS: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "a string": "x",
    "a list": [],
    "a list of things": [1, 2],
    "true": True,
    "wrong types": {"id": 5, "message": "x", "taskId": [], "pageSize": "many", "tenant": {}},
    "objects for texts": {"id": {"a": 1}, "message": {"messageId": {}, "role": [], "parts": {}}},
}


@pytest.mark.parametrize("method", [*METHODS, *OLD_METHODS])
@pytest.mark.parametrize("params", NOT_PARAMS.values(), ids=NOT_PARAMS)
def test_params_of_the_wrong_kind_are_refused(http: httpx.Client, method: str, params: Any) -> None:
    """By every method of both versions."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    found = rpc(http, as_json(body), OLD if "/" in method else NEW)
    if "error" in found:
        assert found["error"]["code"] in (-32600, -32602, -32001, -32004, -32007)
    else:
        assert method == "ListTasks"  # it takes no params, too


def deep(levels: int, leaf: Any = "x") -> Any:
    for level in range(levels):
        leaf = [leaf] if level % 2 else {"a": leaf}
    return leaf


ODD_TEXTS = {
    "surrogate": "\ud800",
    "surrogates the wrong way round": "\udc00\ud800",
    "NUL": "a\u0000b",
    "escape": "\u001b[31m",
    "line end": "a\nb",
    "right to left": "\u202e",
    "not a character": "\uffff",
    "giant": "x" * 200_000,
    "path": "../../etc/passwd",
    "SQL": "'; DROP TABLE tasks; --",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
@pytest.mark.parametrize("headers", [NEW, OLD], ids=["1.0", "0.3"])
def test_odd_texts_anywhere(http: httpx.Client, text: str, headers: dict[str, str]) -> None:
    """As ids, texts, media types, names, keys and values of metadata, users, tenants, urls and tokens."""
    made, method = (message, "SendMessage") if headers is NEW else (old_message, "message/send")
    part = {"text": text} if headers is NEW else {"kind": "text", "text": text}
    for body in (
        call(method, message=made(messageId=text)),
        call(method, message=made(contextId=text)),
        call(method, message=made(taskId=text)),
        call(method, message=made(parts=[part])),
        call(method, message=made(parts=[part | {"mediaType": text, "filename": text}])),
        call(method, message=made(parts=[{"url": text, "mediaType": "text/plain"}])),
        call(method, message=made(parts=[{"raw": text}])),
        call(method, message=made(role=text)),
        call(method, message=made(extensions=[text], referenceTaskIds=[text])),
        call(method, message=made(metadata={text: text})),
        call(method, message=made(), metadata={"user_id": text}),
        call(method, message=made(), metadata={text: {"user_id": text}}),
        call(method, message=made(), tenant=text),
        call(method, message=made(), configuration={"acceptedOutputModes": [text], "historyLength": text}),
        call(method, message=made(), configuration={"taskPushNotificationConfig": {"url": text, "token": text}}),
        call(method, message=made()) | {text: text},
    ):
        rpc(http, as_json(body), headers)
    for name in ("GetTask", "CancelTask", "SubscribeToTask", "tasks/get", "tasks/cancel", "tasks/resubscribe"):
        assert refused(http, as_json(call(name, id=text)), OLD if "/" in name else NEW) in (
            -32001,
            -32602,
            -32600,
            -32700,
        )
    for field in ("contextId", "status", "pageToken", "statusTimestampAfter", "tenant"):
        rpc(http, as_json(call("ListTasks", **{field: text})))
    for field in ("taskId", "id", "url", "token"):
        config = {"taskId": "x", "id": "x", "url": "https://example.com"} | {field: text}
        assert refused(http, as_json(call("CreateTaskPushNotificationConfig", **config)))


@pytest.mark.parametrize("method", ["SendMessage", "SendStreamingMessage", "message/send", "message/stream"])
@pytest.mark.parametrize("levels", [10, 20, 24, 28, 30, 32, 34, 40, 48, 60, 90, 99, 101, 200, 900])
def test_depth_is_stored_and_told_or_refused(http: httpx.Client, levels: int, method: str) -> None:
    """A message that is accepted can be read again, alone and in a list; one that is too deep is InvalidParams or worse."""
    new = "/" not in method
    made, headers = (message, NEW) if new else (old_message, OLD)
    for where in ("metadata", "request", "data"):
        user, context = uuid.uuid4().hex, uuid.uuid4().hex
        said = made(contextId=context)
        metadata: dict[str, Any] = {"user_id": user}
        if where == "metadata":
            said["metadata"] = {"a": deep(levels)}
        elif where == "request":
            metadata["a"] = deep(levels)
        else:
            said["parts"].append({"data": {"a": deep(levels)}} | ({} if new else {"kind": "data"}))
        found = rpc(http, as_json(call(method, message=said, metadata=metadata)), headers)
        listed = rpc(http, as_json(call("ListTasks", contextId=context)))["result"]["tasks"]
        if "error" in found:
            assert found["error"]["code"] in (-32600, -32602, -32700), levels
            assert not listed
        else:
            assert [task["status"]["state"] for task in listed] == ["TASK_STATE_COMPLETED"]
            told = rpc(http, as_json(call("GetTask", id=listed[0]["id"])))
            assert told["result"]["history"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pageSize", 0),
        ("pageSize", -1),
        ("pageSize", 101),
        ("pageSize", 2**31),
        ("pageSize", 10**30),
        ("pageSize", 1.5),
        ("pageSize", True),
        ("historyLength", -1),
        ("historyLength", 2**40),
        ("status", []),
        ("statusTimestampAfter", "yesterday"),
        ("statusTimestampAfter", "9999999-01-01T00:00:00Z"),
        ("statusTimestampAfter", 5),
        ("includeArtifacts", "perhaps"),
    ],
)
def test_numbers_and_times_out_of_range(http: httpx.Client, name: str, value: Any) -> None:
    """InvalidParams on JSON-RPC, 400 on REST."""
    assert refused(http, as_json(call("ListTasks", **{name: value}))) == -32602
    if name != "includeArtifacts" and not isinstance(value, list):
        assert rest(http, "GET", f"/rest/tasks?{name}={quote(str(value))}").status_code == 400


TOKENS = ["x", "====", "W10=", "e30=", "bnVsbA==", "WzEsMiwzXQ==", "WzEsIngiXQ==", "\u0000", "é", "a" * 100_000]


def token(value: str) -> str:
    import base64

    return base64.urlsafe_b64encode(value.encode()).decode()


@pytest.mark.parametrize(
    "given",
    [
        *TOKENS,
        token("[" * 50_000),
        token('[1,"\\ud800",1]'),
        token(f'[1,"x",{10**30}]'),
        token(f'[{10**30},"x",1]'),
        token('[1,"x",-5]'),
        token('[1.5,"x",1]'),
        token('[NaN,"x",1]'),
        token("9" * 5000),
    ],
)
def test_page_tokens_that_nobody_gave(http: httpx.Client, given: str) -> None:
    """InvalidParams, whatever is in them."""
    assert refused(http, as_json(call("ListTasks", pageToken=given))) == -32602
    if len(given) < 50_000:
        assert rest(http, "GET", f"/rest/tasks?pageToken={quote(given)}").status_code == 400


def test_a_body_that_is_too_long_is_refused(http: httpx.Client) -> None:
    """By its Content-Length and, where it has none, by its bytes; on JSON-RPC of both versions, and on REST."""
    long = as_json(call("SendMessage", message=message(parts=[{"text": "x" * 11 * 2**20}])))
    for headers in (NEW, OLD):
        assert refused(http, long, headers) == -32600
    assert rest(http, "POST", "/rest/message:send", long).status_code in (400, 413)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(long), 2**20):
            yield long[start : start + 2**20]

    answered = http.post("/", content=chunks(), headers=JSON_TYPE | NEW)
    assert answered.json()["error"]["code"] == -32600


@pytest.mark.parametrize("length", ["0", "5", "-1", "x", "99999999999999999999", "1, 2", "+10", ""])
def test_a_wrong_content_length(server: Server, length: str) -> None:
    """An error, or a connection that is closed; never a 5xx, never a wait."""
    parts = urlsplit(server.url)
    assert parts.hostname
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=SECONDS) as raw:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nA2A-Version: 1.0\r\nContent-Length: {length}\r\n\r\n"
        raw.sendall(head.encode() + GOOD)
        raw.shutdown(socket.SHUT_WR)
        answered = b""
        while piece := raw.recv(65536):
            answered += piece
    assert not answered or answered.split()[1][:1] in b"24"
    assert not INSIDE.search(answered.decode("latin-1"))


def test_a_sender_that_stops_in_the_middle(server: Server, http: httpx.Client) -> None:
    """Hanging up halfway through the head or the body costs nobody anything."""
    parts = urlsplit(server.url)
    head = f"POST / HTTP/1.1\r\nHost: x\r\nA2A-Version: 1.0\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
    for sent in (b"", b"\x00\xff", head[:20], head, head + GOOD[:30], b"GET " + b"x" * 100_000):
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=SECONDS) as raw:
            raw.sendall(sent)
    assert http.get("/healthz").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data", "x", "application/jsonp"])
def test_another_content_type_is_refused(http: httpx.Client, kind: str) -> None:
    """-32005 on JSON-RPC, 400 with its reason on REST, as the SDK maps it; parameters and case do not matter."""
    answered = http.post("/", content=GOOD, headers=NEW | {"Content-Type": kind})
    assert answered.json()["error"]["code"] == -32005
    answered = http.post("/rest/message:send", content=b"{}", headers=NEW | {"Content-Type": kind})
    assert answered.status_code == 400
    assert answered.json()["error"]["details"][0]["reason"] == "CONTENT_TYPE_NOT_SUPPORTED"
    for good in ("application/json; charset=utf-8", "Application/JSON", "application/a2a+json"):
        body = as_json(call("SendMessage", message=message()))
        assert "result" in http.post("/", content=body, headers=NEW | {"Content-Type": good}).json()


@pytest.mark.parametrize(
    "path", ["%00", "%ff%fe", "%ED%A0%80", "..%2f..%2fetc", "x" * 5000, "%F0%9F%98%80", "a%0Ab", "*"]
)
def test_odd_paths(http: httpx.Client, path: str) -> None:
    """Ids in REST paths and agents' names may be anything."""
    for method, where in (
        ("GET", f"/rest/tasks/{path}"),
        ("POST", f"/rest/tasks/{path}:cancel"),
        ("POST", f"/rest/tasks/{path}:subscribe"),
        ("GET", f"/rest/tasks/{path}/pushNotificationConfigs"),
        ("GET", f"/rest/tasks/x/pushNotificationConfigs/{path}"),
        ("DELETE", f"/rest/tasks/{path}/pushNotificationConfigs/{path}"),
        ("GET", f"/rest/{path}/tasks/x"),
        ("GET", f"/agents/{path}/.well-known/agent-card.json"),
        ("GET", f"/{path}"),
    ):
        assert rest(http, method, where).status_code in (400, 404, 405)


# -- by hypothesis: calls that are nearly right --------------------------------------------------------------------------

TASK = {"id": "x", "taskId": "x", "historyLength": 1}
CALLS: list[tuple[dict[str, str], dict[str, Any]]] = [
    (
        NEW,
        call("SendMessage", message=message(metadata={"user_id": "a"}, extensions=["x"]), metadata={"a": {"b": [1]}}),
    ),
    (NEW, call("SendStreamingMessage", message=message(), configuration={"historyLength": 1})),
    (
        NEW,
        call(
            "SendMessage", message=message(), configuration={"returnImmediately": False, "acceptedOutputModes": ["x"]}
        ),
    ),
    (NEW, call("GetTask", **TASK)),
    (
        NEW,
        call("ListTasks", contextId="x", pageSize=5, pageToken="", status="TASK_STATE_WORKING", includeArtifacts=True),
    ),
    (NEW, call("CancelTask", id="x", metadata={"a": 1})),
    (NEW, call("SubscribeToTask", id="x")),
    (
        NEW,
        call("CreateTaskPushNotificationConfig", taskId="x", url="https://example.com", authentication={"scheme": "x"}),
    ),
    (NEW, call("GetTaskPushNotificationConfig", taskId="x", id="y")),
    (NEW, call("ListTaskPushNotificationConfigs", taskId="x", pageSize=1)),
    (NEW, call("DeleteTaskPushNotificationConfig", taskId="x", id="y")),
    (OLD, call("message/send", message=old_message(metadata={"a": 1}), configuration={"blocking": True})),
    (OLD, call("message/stream", message=old_message(contextId="c"))),
    (OLD, call("tasks/get", **TASK)),
    (OLD, call("tasks/pushNotificationConfig/set", taskId="x", pushNotificationConfig={"url": "https://example.com"})),
]

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=5)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


empty: st.SearchStrategy[Any] = st.sampled_from(["", 0]) | st.builds(list[Any]) | st.builds(dict[str, Any])


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of everything inside a JSON value."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    elif isinstance(value, list):
        inside = list(enumerate(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return [place for key, inner in inside for place in ((*at, key), *places(inner, (*at, key)))]


@st.composite
def nearly(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, Any]]:
    """A good call with a few things replaced, removed, renamed or wrapped."""
    headers, body = draw(st.sampled_from(CALLS))
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        known = places(body)
        if not known:
            break
        place = draw(st.sampled_from(known))
        path, last = place[:-1], place[-1]
        inside: Any = body
        for step in path:
            inside = inside[step]
        match draw(st.sampled_from(["replace", "replace", "remove", "wrap", "add", "empty"])):
            case "replace":
                inside[last] = draw(values)
            case "remove":
                del inside[last]
            case "wrap":
                inside[last] = [inside[last]] if draw(st.booleans()) else {"a": inside[last]}
            case "empty":
                inside[last] = draw(empty)
            case _:
                if isinstance(inside, dict):
                    inside[draw(st.text(max_size=8))] = draw(values)
    return headers, body


@settings(max_examples=300, deadline=None)
@given(sent=nearly())
def test_calls_that_are_nearly_right(http: httpx.Client, sent: tuple[dict[str, str], dict[str, Any]]) -> None:
    """The answer is a result or an error of the protocol, on both versions."""
    headers, body = sent
    rpc(http, as_json(body), headers)


@settings(max_examples=150, deadline=None)
@given(sent=nearly(), path=st.sampled_from(["message:send", "message:stream", "tasks/x/pushNotificationConfigs"]))
def test_rest_bodies_that_are_nearly_right(
    http: httpx.Client, sent: tuple[dict[str, str], dict[str, Any]], path: str
) -> None:
    """A result, or an error of the protocol."""
    rest(http, "POST", f"/rest/{path}", as_json(sent[1].get("params")))


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(GOOD)), by=st.binary(max_size=6), gone=st.integers(0, 6))
def test_bytes_that_are_nearly_right(http: httpx.Client, at: int, by: bytes, gone: int) -> None:
    """A good body with a few bytes changed, as a bad line would do it."""
    rpc(http, GOOD[:at] + by + GOOD[at + gone :])


@settings(max_examples=100, deadline=None)
@given(
    names=st.lists(
        st.sampled_from(["pageSize", "pageToken", "contextId", "status", "statusTimestampAfter", "historyLength", "x"]),
        max_size=4,
    ),
    given_values=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=4, max_size=4),
)
def test_queries_that_are_nearly_right(http: httpx.Client, names: list[str], given_values: list[str]) -> None:
    """REST's query parameters, with anything in them, more than once."""
    query = "&".join(f"{name}={quote(value)}" for name, value in zip(names, given_values, strict=False))
    rest(http, "GET", f"/rest/tasks?{query}")
    rest(http, "GET", f"/rest/tasks/x?{query}")
