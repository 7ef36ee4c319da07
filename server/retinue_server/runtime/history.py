"""The history of a turn's context, as the messages of a prompt."""

from __future__ import annotations

from a2a.server.agent_execution import RequestContext

from retinue_memory import Message
from retinue_server.a2a.executor import TURN, History, answer_to, conversation

from .store.tasks import Tasks
from .turn import Turn

_MAX_TASKS = 20
_MAX_CHARS = 8_000
"""About 2,000 tokens of English, counted from the latest message back."""


def history_from(tasks: Tasks) -> History:
    """Return a function that loads the stored messages of the context and its owner, oldest first, without the message that is
    to be answered."""

    async def history(request: RequestContext) -> list[Message]:
        turn: Turn = request.call_context.state[TURN]
        if turn.new_context:
            return []
        latest = turn.request.message.message_id
        partial_answer = f"{turn.task_id}/{answer_to(latest)}"  # left by an attempt that crashed
        messages = [entry for task in await tasks.context(turn, _MAX_TASKS) for entry in conversation(task)]
        return _window([entry for entry in messages if entry.id not in (latest, partial_answer)])

    return history


def _window(messages: list[Message]) -> list[Message]:
    """Return the latest messages that fit into _MAX_CHARS together."""
    left = _MAX_CHARS
    for index in range(len(messages) - 1, -1, -1):
        left -= len(messages[index].content)
        if left < 0:
            return messages[index + 1 :]
    return messages
