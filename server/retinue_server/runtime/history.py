"""What was said before in a turn's context, as the messages of a prompt."""

from __future__ import annotations

from a2a.server.agent_execution import RequestContext

from retinue_memory import Message
from retinue_server.a2a.executor import (
    TURN,
    History,
    answer_to,
    conversation,
)

from .store.tasks import Tasks
from .turn import Turn

_TASKS = 20
"""How many tasks of a context a model may see."""
_CHARACTERS = 8_000
"""How much of them, counted from the latest word back: about 2,000 tokens of English."""


def history_from(tasks: Tasks) -> History:
    """The stored messages of the context and its owner, oldest first, without the one that is to be answered."""

    async def history(request: RequestContext) -> list[Message]:
        turn: Turn = request.call_context.state[TURN]
        if turn.new_context:
            return []
        latest = turn.request.message.message_id
        begun = f"{turn.task_id}/{answer_to(latest)}"  # what a crash left of the answer that is to be given anew
        said = [entry for task in await tasks.context(turn, _TASKS) for entry in conversation(task)]
        return _window([entry for entry in said if entry.id not in (latest, begun)])

    return history


def _window(messages: list[Message]) -> list[Message]:
    """The messages at the end that fit together into what a prompt may spend on the past."""
    left = _CHARACTERS
    for index in range(len(messages) - 1, -1, -1):
        left -= len(messages[index].content)
        if left < 0:
            return messages[index + 1 :]
    return messages
