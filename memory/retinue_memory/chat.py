"""The model contracts: `ChatModel`, which answers a conversation, and `Embedder`, which turns texts into vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retinue_memory.messages import Message, ToolCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """The description of a tool for a model. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """The number of tokens of one or more model calls."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelDelta:
    """A piece of a model's answer: a part of its text, or whole tool calls. `usage` and `finish` come with the last one."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    finish: str | None = None
    """Why the model stopped: "stop", "length", "tool_calls" or another reason. None: it has not stopped."""


class ChatModel(ABC):
    """A model that answers a conversation."""

    name: str = "model"
    calls_tools: bool = True
    """Whether the model can call tools. If False, it ignores those it is offered; an agent warns about that."""

    @abstractmethod
    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        """Answer piece by piece. `schema` asks for a JSON object that matches this JSON Schema.

        Raises ModelError and nothing else.
        """

    async def aclose(self) -> None:
        """Release what the model holds. Does nothing by default."""


class Embedder(ABC):
    """Turns texts into vectors. `name` identifies the model: vectors of different names are never compared."""

    name: str
    dimensions: int

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed up to 64 texts. Returns one L2-normalised row per text: shape (len(texts), dimensions).

        Called from several worker threads at once. One call may hold texts of several users; if it raises, it is repeated
        with the texts of each user. Raises ModelError if the texts cannot be embedded.
        """


EmbedderSource = Embedder | Callable[[], Embedder | None] | None
"""An embedder, or a function that finds one, called off the event loop at first use. Each user of it defines None."""
