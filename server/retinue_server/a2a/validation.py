"""Validate SendMessage requests, in one pass, and the common fields of the other requests."""

from __future__ import annotations

from collections.abc import Callable, Generator, Set
from dataclasses import dataclass

from a2a.types import (
    AgentCard,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    TaskPushNotificationConfig,
)
from a2a.utils.constants import PROTOCOL_VERSION_1_0
from a2a.utils.errors import (
    ContentTypeNotSupportedError,
    ExtensionSupportRequiredError,
    InvalidParamsError,
    VersionNotSupportedError,
)
from google.protobuf.struct_pb2 import Value

from retinue_memory.ids import new_id
from retinue_server.auth.owners import checked_id, user_of

from .json_values import part_values, values_problem

ANY_MEDIA_TYPE = "*/*"


@dataclass(frozen=True, slots=True)
class IncomingMessage:
    """A valid SendMessage request."""

    request: SendMessageRequest
    user: str | None
    """The user that the request or its message names; None: the stored task's, if it continues one."""
    extensions: frozenset[str]
    history_length: int | None
    """How many messages of the history the answer may carry; None: all."""
    push: TaskPushNotificationConfig | None
    """Part of `request`. Whether its URL may be called is for the push module to check."""


class MessageValidator:
    """Validates the SendMessage requests to the agent of one card.

    `check` is the part of the agent's executor: it raises InvalidParamsError for a request that it could not run.
    """

    def __init__(self, card: AgentCard, check: Callable[[SendMessageRequest], None]) -> None:
        self._check = check
        self._required = frozenset(found.uri for found in card.capabilities.extensions if found.required)
        self._media_types = frozenset(card.default_input_modes).union(*(skill.input_modes for skill in card.skills))

    def validate(self, request: SendMessageRequest, extensions: Set[str]) -> IncomingMessage:
        """Check the whole request, in time linear in its size. `extensions` are those that the caller activates.

        Raises InvalidParamsError, ContentTypeNotSupportedError or ExtensionSupportRequiredError.
        """
        message = request.message
        require(messageId=message.message_id)
        checked_id(message.message_id, "messageId")
        checked_id(message.context_id, "contextId")
        checked_id(message.task_id, "taskId")
        if message.role != Role.ROLE_USER:
            raise InvalidParamsError("role: expected ROLE_USER in a message to an agent")
        self._check(request)
        if problem := values_problem([*request.metadata.fields.values(), *self._values_of(message)]):
            raise InvalidParamsError(f"message: {problem}")
        if missing := self._required - extensions:
            raise ExtensionSupportRequiredError(f"this agent requires the extensions {', '.join(sorted(missing))}")
        configuration = request.configuration
        push = None
        if configuration.HasField("task_push_notification_config"):
            push = configuration.task_push_notification_config
            complete_push_config(push)
        return IncomingMessage(
            request,
            user=user_of(request.metadata, message.metadata),
            extensions=frozenset(extensions),
            history_length=history_length(configuration),
            push=push,
        )

    def _values_of(self, message: Message) -> Generator[Value]:
        """The values of the message and of its parts, whose media types are checked on the way."""
        yield from message.metadata.fields.values()
        for part in message.parts:
            if part.media_type and not self._media_types & {part.media_type, ANY_MEDIA_TYPE}:
                known = ", ".join(sorted(self._media_types))
                raise ContentTypeNotSupportedError(f"mediaType: this agent accepts {known}, got {part.media_type}")
            yield from part_values(part)


def require_parts(request: SendMessageRequest) -> None:
    """Raise InvalidParamsError for a message without parts: the check for executors that have none of their own."""
    if not request.message.parts:
        raise InvalidParamsError("parts: expected at least one")


def require(**fields: str) -> None:
    """Raise InvalidParamsError, naming the fields, if any of them is not set."""
    missing = [{"field": name, "message": "Field is required."} for name, value in fields.items() if not value]
    if missing:
        raise InvalidParamsError(f"{missing[0]['field']}: is missing", {"errors": missing})


def history_length(params: SendMessageConfiguration | GetTaskRequest | ListTasksRequest) -> int | None:
    """The number of messages that the caller asks for. Returns None for all; raises InvalidParamsError if negative."""
    if not params.HasField("history_length"):
        return None
    if params.history_length < 0:
        raise InvalidParamsError(f"historyLength: expected 0 or more, got {params.history_length}")
    return params.history_length


def complete_push_config(config: TaskPushNotificationConfig) -> None:
    """Check a push config's fields, and give it an id if it has none."""
    require(url=config.url)
    config.id = checked_id(config.id, "id") or new_id()


def check_version(version: str | None) -> None:
    """Raise VersionNotSupportedError unless a request speaks version 1 of the protocol. None: it says nothing, and means 0.3."""
    if (version or "0.3").partition(".")[0] != PROTOCOL_VERSION_1_0.partition(".")[0]:
        raise VersionNotSupportedError(f"A2A version {version or '0.3'} is not supported here: send A2A-Version: 1.0")
