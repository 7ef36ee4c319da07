"""A SendMessage request is validated once, and what comes out needs no second look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from a2a.types import AgentCapabilities, AgentCard, AgentExtension, Part, SendMessageRequest, TaskPushNotificationConfig
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    ExtensionSupportRequiredError,
    InvalidParamsError,
)
from hypothesis import given
from hypothesis import strategies as st

from retinue_server.a2a.json_values import MAX_DEPTH
from retinue_server.a2a.validation import IncomingMessage, MessageValidator, require_parts
from retinue_server.auth.owners import user_of

from .inprocess import request

SIGNED = "urn:example:signed"
CARD = AgentCard(
    default_input_modes=["text/plain"],
    capabilities=AgentCapabilities(extensions=[AgentExtension(uri=SIGNED, required=True)]),
)


def validate(sent: SendMessageRequest, *extensions: str) -> IncomingMessage:
    return MessageValidator(CARD, require_parts).validate(sent, frozenset((SIGNED, *extensions)))


def test_a_valid_request_comes_out_whole() -> None:
    """With its user, the extensions that it activates, its history length, and a push config that has an id."""
    sent = request("hello", {"user_id": 42})
    sent.configuration.history_length = 0
    sent.configuration.task_push_notification_config.url = "https://example.com"
    found = validate(sent, "urn:example:x")
    assert (found.user, found.extensions, found.history_length) == ("42", frozenset((SIGNED, "urn:example:x")), 0)
    assert found.request is sent
    assert found.push is not None
    assert found.push.id
    assert sent.configuration.task_push_notification_config == found.push


def test_what_a_request_leaves_out_is_none() -> None:
    """No user, all of the history, no push."""
    found = validate(request())
    assert (found.user, found.history_length, found.push) == (None, None, None)


def nested(levels: int) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = {"a": value}
    return value


def with_data(levels: int) -> SendMessageRequest:
    sent = request()
    part = Part()
    part.data.struct_value.update(nested(levels))
    sent.message.parts.append(part)
    return sent


def with_part_metadata(levels: int) -> SendMessageRequest:
    sent = request()
    sent.message.parts[0].metadata.update(nested(levels))
    return sent


def with_message_metadata(levels: int) -> SendMessageRequest:
    sent = request()
    sent.message.metadata.update(nested(levels))
    return sent


def with_request_metadata(levels: int) -> SendMessageRequest:
    return request("hello", nested(levels))


@pytest.mark.parametrize(
    ("build", "outer"),
    [
        (with_data, 0),
        (with_part_metadata, 1),
        (with_message_metadata, 1),
        (with_request_metadata, 1),
    ],
)
def test_values_are_as_deep_as_every_binding_can_read(build: Callable[[int], SendMessageRequest], outer: int) -> None:
    """Wherever they are in the request; metadata is an object itself."""
    validate(build(MAX_DEPTH - 1 + outer))
    with pytest.raises(InvalidParamsError, match="deep"):
        validate(build(MAX_DEPTH + outer))


@pytest.mark.parametrize(
    ("sent", "error", "words"),
    [
        (request(message_id="a\nb"), InvalidParamsError, "messageId"),
        (request(context_id="a" * 513), InvalidParamsError, "contextId"),
        (request(task_id="a\x00"), InvalidParamsError, "taskId"),
        (request(None), InvalidParamsError, "parts"),
        (request("hello", {"a": float("inf")}), InvalidParamsError, "finite"),
        (SendMessageRequest(), InvalidParamsError, "messageId"),
    ],
)
def test_what_is_wrong_is_named(sent: SendMessageRequest, error: type[A2AError], words: str) -> None:
    """By its field."""
    with pytest.raises(error, match=words):
        validate(sent)


def test_media_types_and_extensions_are_the_cards() -> None:
    """What the agent does not accept, and what it requires, is named."""
    sent = request()
    sent.message.parts.append(Part(url="https://example.com/x.png", media_type="image/png"))
    with pytest.raises(ContentTypeNotSupportedError, match="text/plain, got image/png"):
        validate(sent)
    with pytest.raises(ExtensionSupportRequiredError, match=SIGNED):
        MessageValidator(CARD, require_parts).validate(request(), frozenset())


def test_a_push_config_needs_a_url() -> None:
    """Before anything is looked up."""
    sent = request()
    sent.configuration.task_push_notification_config.CopyFrom(TaskPushNotificationConfig(id="x"))
    with pytest.raises(InvalidParamsError, match="url"):
        validate(sent)


@given(st.integers(1 - 2**53, 2**53 - 1))
def test_a_whole_number_is_the_user_of_its_digits(number: int) -> None:
    """Below 2^53 every whole number survives the float that JSON makes of it."""
    assert user_of({"user_id": float(number)}) == user_of({"user_id": number}) == str(number)


@given(st.integers(min_value=2**53) | st.integers(max_value=-(2**53)) | st.floats().filter(lambda one: one % 1 != 0))
def test_any_other_number_is_no_user(number: float) -> None:
    """From 2^53 on, two numbers may arrive as one float; fractions are nobody's id."""
    with pytest.raises(InvalidParamsError, match="below 2\\^53"):
        user_of({"user_id": number})
