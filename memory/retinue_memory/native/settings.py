"""The settings of the native memory in a config entry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from retinue_memory.errors import ConfigError
from retinue_memory.settings import Address, MemorySettings, Model, NamesOrOff, Positive, PositiveOrOff, Whole

from . import redaction


def _off(value: object) -> object:
    """YAML reads off as false."""
    return "off" if value in (False, None, "none") else value


def _known_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    try:
        redaction.Redaction(kinds)
    except ConfigError as error:
        raise ValueError(error.problem) from None
    return kinds


class NativeSettings(MemorySettings):
    """The keys of a native memory. `NativeMemory` describes what they do."""

    model_config = ConfigDict(extra="forbid")

    database: Address | None = Field(default=None, description="A database of its own; null: the server's.")
    embedder: Annotated[
        Literal["minilm", "off"], BeforeValidator(_off), WithJsonSchema({"enum": ["minilm", "off", False, None]})
    ] = Field(default="minilm", description="off: memories are found by their words alone.")
    cache_mb: Positive = Field(default=256, description="Megabytes of indexes to keep in memory.")
    max_memories: Whole = Field(
        default=100_000, ge=1, description="Memories of one user; beyond it the least valuable are deleted."
    )
    fade_days: PositiveOrOff = Field(
        default=None, description="Days after which a memory that was not repeated counts less; null: never."
    )
    redact: Annotated[NamesOrOff, AfterValidator(_known_kinds)] = Field(
        default=redaction.DEFAULT, description='What to redact before storing: secret, card, email, phone, "regex:...".'
    )
    mode: Literal["verbatim", "llm"] = Field(
        default="verbatim", description="llm: a model extracts facts from what was said, in the background."
    )
    model: Model = Field(default=None, validate_default=True, description="The model of the mode llm.")
    instructions: str = Field(default="", description="What to tell that model in addition.")
    categories: NamesOrOff = Field(default=(), description="The categories that it looks for; none: any.")

    @field_validator("model")
    @classmethod
    def _needed_by_llm(cls, value: object, info: ValidationInfo) -> object:
        if value is None and info.data.get("mode") == "llm":
            raise ValueError('the mode "llm" needs a model: a ChatModel, or the "module:attribute" of one')
        return value

    @property
    def uses_embedder(self) -> bool:
        return self.embedder == "minilm"

    @property
    def model_name(self) -> str | None:
        return self.model if isinstance(self.model, str) else None
