"""What is written by hand for speed says what protobuf's own converters say, to the letter."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from a2a.types import (
    Artifact,
    Message,
    Part,
    SendMessageRequest,
    SendMessageResponse,
    StreamResponse,
    Task,
    TaskArtifactUpdateEvent,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from retinue_memory.clock import now_us
from retinue_memory.ids import new_id
from retinue_server.a2a.json_codec import (
    send_request,
    send_response,
    struct_json,
    time_json,
)
from retinue_server.runtime.events import payload_of

texts = st.text(max_size=8)
said = st.one_of(st.just(""), texts)  # the empty string is what a field without a value says
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def now_and_then(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual, or anything in its place."""
    return st.integers(0, 9).flatmap(lambda number: anything if number == 0 else usual)


def an_object(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    known = st.fixed_dictionaries({}, optional={name: now_and_then(field) for name, field in fields.items()})
    return known | st.builds(merged, known, st.dictionaries(texts, anything, max_size=1))


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return one | other


plain_parts = st.lists(st.fixed_dictionaries({"text": texts}), max_size=3)
plain_messages = st.fixed_dictionaries(
    {"messageId": texts, "role": st.just("ROLE_USER"), "parts": plain_parts},
    optional={"contextId": said, "taskId": said},
)
plain: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"message": plain_messages},
    optional={
        "metadata": st.dictionaries(texts, texts, max_size=2),
        "configuration": st.fixed_dictionaries({}, optional={"returnImmediately": st.booleans()}),
        "tenant": said,
    },
)
parts = st.lists(
    now_and_then(an_object(text=texts, url=texts, data=anything, mediaType=texts, filename=texts)), max_size=2
)
messages = an_object(
    messageId=texts,
    message_id=texts,
    role=st.sampled_from(["ROLE_USER", "ROLE_AGENT", 1, "user"]),
    parts=parts,
    contextId=texts,
    taskId=texts,
    metadata=anything,
    extensions=st.lists(texts, max_size=2),
)
odd = now_and_then(
    an_object(
        message=messages,
        metadata=st.dictionaries(texts, anything, max_size=2),
        configuration=an_object(returnImmediately=st.booleans(), historyLength=st.integers()),
        tenant=texts,
    )
)


@given(plain)
def test_a_plain_request_is_read_as_parse_dict_reads_it(params: dict[str, Any]) -> None:
    """Without its help."""
    assert send_request(params) == ParseDict(params, SendMessageRequest())


@given(odd)
@example({"message": {"messageId": "\ud800"}})
@example({"message": {"parts": [{"text": "a", "url": "b"}]}})
@example({"message": {"contextId": None, "role": "ROLE_USER"}})
@example({"message": {"messageId": "a", "message_id": "b"}})
@example({"message": {}, "metadata": {"user_id": 42}})
@example({"message": {}, "metadata": None})
def test_whatever_is_read_is_what_parse_dict_reads(params: Any) -> None:
    """What it would read differently, or refuse, is left to it."""
    read = send_request(params)
    if read is not None:
        try:
            assert read == ParseDict(params, SendMessageRequest(), ignore_unknown_fields=True)
        except ParseError as error:
            pytest.fail(f"it was to be refused: {error}")


def structs(values: dict[str, Any]) -> Struct:
    found = Struct()
    found.update(values)
    return found


def data_part(value: Any) -> Part:
    return Part(data=structs({"value": value}).fields["value"])


def long_message(size: int) -> Message:
    return Message(message_id="long", parts=[Part(text="x" * size)])


finite: st.SearchStrategy[Any] = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | texts
metadata = st.none() | st.builds(structs, st.dictionaries(texts, finite | st.lists(finite, max_size=2), max_size=2))
ids = st.lists(texts, max_size=2)
stamps = st.builds(
    Timestamp,
    seconds=st.integers(-62_135_596_800, 253_402_300_799),
    nanos=st.integers(0, 999_999_999) | st.integers(0, 999_999).map(lambda n: n * 1000) | st.just(250_000_000),
)
all_parts = st.lists(
    st.builds(Part, text=texts, metadata=metadata, filename=said, media_type=said)
    | st.builds(Part, url=texts, media_type=said)
    | st.builds(Part, raw=st.binary(max_size=4), filename=said)
    | st.builds(data_part, finite)
    | st.builds(Part),
    max_size=2,
)
all_messages = st.builds(
    Message,
    message_id=said,
    context_id=said,
    task_id=said,
    role=st.sampled_from([0, 1, 2, 7]),
    parts=all_parts,
    metadata=metadata,
    extensions=ids,
    reference_task_ids=ids,
)
statuses = st.builds(
    TaskStatus,
    state=st.sampled_from([*range(9), 99]),
    message=st.none() | all_messages,
    timestamp=st.none() | stamps,
)
artifacts = st.builds(
    Artifact, artifact_id=said, name=said, description=said, parts=all_parts, metadata=metadata, extensions=ids
)
tasks = st.builds(
    Task,
    id=said,
    context_id=said,
    status=st.none() | statuses,
    artifacts=st.lists(artifacts, max_size=2),
    history=st.lists(all_messages, max_size=2),
    metadata=metadata,
)


@given(tasks | all_messages)
def test_an_answer_is_written_as_message_to_dict_writes_it(answer: Task | Message) -> None:
    """Every field of a task and of a message, set or not, known to the enumeration or not."""
    sent = SendMessageResponse(task=answer) if isinstance(answer, Task) else SendMessageResponse(message=answer)
    assert send_response(answer) == MessageToDict(sent)


@given(st.dictionaries(texts, anything, max_size=3))
def test_metadata_are_written_as_message_to_dict_writes_them(values: dict[str, Any]) -> None:
    """However deep; what JSON cannot say is refused as there."""
    struct = Struct()
    try:
        struct.update(values)
    except UnicodeEncodeError:
        return  # half of a surrogate pair gets into no message
    try:
        expected = MessageToDict(struct)
    except ValueError:
        with pytest.raises(ValueError, match="Fail to serialize"):
            struct_json(struct)
    else:
        assert struct_json(struct) == expected


@given(stamps)
def test_a_time_is_written_as_protobuf_writes_it(when: Timestamp) -> None:
    """With as many digits as it needs."""
    assert time_json(when) == when.ToJsonString()


@given(
    tasks
    | all_messages
    | st.builds(TaskStatusUpdateEvent, task_id=said, context_id=said, status=statuses, metadata=metadata)
    | st.builds(
        TaskArtifactUpdateEvent, task_id=said, artifact=artifacts, append=st.booleans(), last_chunk=st.booleans()
    )
    | st.builds(long_message, st.integers(100, 20_000))
)
def test_an_event_is_serialised_as_the_stream_response_it_is(
    event: Task | Message | TaskStatusUpdateEvent | TaskArtifactUpdateEvent,
) -> None:
    """However long it is."""
    names = {
        Task: "task",
        Message: "message",
        TaskStatusUpdateEvent: "status_update",
        TaskArtifactUpdateEvent: "artifact_update",
    }
    response = StreamResponse()
    getattr(response, names[type(event)]).CopyFrom(event)
    assert StreamResponse.FromString(payload_of(event)) == response


def test_new_ids_are_uuids_in_the_order_of_their_making() -> None:
    """Version 7, to the millisecond; no two are the same."""
    made = [new_id() for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert all(str(found) == text and found.version == 7 for text in made for found in [uuid.UUID(text)])
    assert all(uuid.UUID(text).variant == uuid.RFC_4122 for text in made)
    milliseconds = [uuid.UUID(text).int >> 80 for text in made]
    assert milliseconds == sorted(milliseconds)
    assert abs(milliseconds[-1] / 1000 - time.time()) < 60


def test_a_stamp_is_now_in_whole_microseconds() -> None:
    """Which is what the database keeps of a time."""
    made = Timestamp()
    before = time.time_ns() // 1000
    made.FromMicroseconds(now_us())
    after = time.time_ns() // 1000
    assert before <= made.ToMicroseconds() <= after
    assert made.nanos % 1000 == 0
