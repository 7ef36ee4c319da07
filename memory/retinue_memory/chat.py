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
    """A tool as a model is told of it. `parameters` is a JSON Schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one model call used."""

    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelDelta:
    """A piece of a model's answer. Pieces of text add up; `tool_calls` come whole; `usage` and `finish` come last."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None
    finish: str | None = None
    """Why the model stopped: "stop", "length", "tool_calls", ... None: it has not."""


class ChatModel(ABC):
    """A model that answers a conversation."""

    name: str = "model"

    @abstractmethod
    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        """The answer, piece by piece. `schema` asks for a JSON object of that JSON Schema. Raises ModelError only."""

    async def aclose(self) -> None:
        """Release what the model holds. By default there is nothing to release."""


class Embedder(ABC):
    """Turns texts into vectors. `name` identifies the model: vectors of different names are never compared."""

    name: str
    dimensions: int

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One L2-normalised row a text: shape (len(texts), dimensions). Called from worker threads, several at a time, with up
        to 64 texts, which may be of several users. Where it raises for several, it is asked for each user's again.

        Raises ModelError where the texts cannot be embedded.
        """


EmbedderSource = Embedder | Callable[[], Embedder | None] | None
"""An embedder, or a function that finds one, called off the event loop at the first use. What None means, each taker says."""
