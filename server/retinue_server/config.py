"""retinue.yaml: its schema, and how it is loaded.

The defaults of these models are the built-in configuration. `config/retinue.yaml` is the same with explanations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from retinue_memory.database.url import check_url
from retinue_memory.errors import ConfigError, StoreError
from retinue_memory.importer import suggestion
from retinue_memory.settings import MemorySettings, Number, Whole, built_in_models, settings_model

from . import yaml_source
from .config_errors import InvalidConfig, Problems
from .yaml_source import Document

DEFAULT_FILE = Path("config/retinue.yaml")
"""The file that `retinue serve` reads if none is named and this one exists."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def _mode(value: object) -> object:
    """YAML reads off as false."""
    return "off" if value is False else value


def _names(value: object) -> object:
    """A name, a list of names, or off (which YAML reads as false) as a list of names."""
    if value is False or value is None or value == "off":
        return ()
    return (value,) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(Section):
    """Where the server listens."""

    host: str = Field(default="127.0.0.1", description="The address to listen on. 127.0.0.1: this machine only.")
    port: Whole = Field(default=9000, ge=0, le=65535, description="The port to listen on; 0: any free one.")
    public_url: str | None = Field(
        default=None, description="The address in agent cards; null: the address of the request for the card."
    )
    grpc_port: Whole | None = Field(
        default=None, ge=0, le=65535, description="The port of the default agent's gRPC interface; null: none."
    )
    grace: Number = Field(default=10, ge=0, description="Seconds that a stop waits for running turns.")

    @field_validator("public_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ValueError("expected an address like https://agents.example.com")
        return value.rstrip("/")


class LimitsConfig(Section):
    """How many messages may run or wait. One more is refused, and can be sent again later."""

    turns: Whole = Field(default=10_000, ge=1, description="Messages running or waiting, over all users.")
    waiting: Whole = Field(default=32, ge=1, description="Messages running or waiting in one context.")


class PushConfig(Section):
    """Push notifications: where they may go, and how often they are tried."""

    allow: tuple[str, ...] = Field(default=(), description="Private hosts or networks that may be called.")
    tries: Whole = Field(default=10, ge=1, description="Tries before a notification is given up.")


class RetentionConfig(Section):
    """How long ended tasks are kept."""

    days: Number | None = Field(default=30, gt=0, description="Days that ended tasks are kept; null: for ever.")


class AuthConfig(Section):
    """Who may call."""

    mode: Literal["none"] = Field(
        default="none", description="none: whoever can reach the server may act for every user."
    )


class MemoryConfig(BaseModel):
    """One memory. All other keys belong to its backend."""

    model_config = ConfigDict(extra="allow", frozen=True)

    backend: str = Field(
        default="native", description='native, mem0, mem0-server, mem0-local, an installed name, or "module:attribute".'
    )
    write_timeout: Number = Field(
        default=30.0, gt=0, description="Seconds that writing a turn may take before it is tried again."
    )
    write_tries: Whole = Field(default=40, ge=1, description="Tries before a write is given up.")

    @model_validator(mode="before")
    @classmethod
    def _untyped(cls, value: Any) -> Any:
        return yaml_source.untyped(value)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry as `open_memory` takes it."""
        return self.model_dump(exclude={"write_timeout", "write_tries"})

    @property
    def settings(self) -> MemorySettings:
        """The keys of the backend, validated if it is built in."""
        return settings_model(self.backend).model_validate(self.model_extra)

    def check(self, name: str, problems: Problems) -> MemorySettings | None:
        """The `settings`. Returns None and adds the problems if they are invalid; `name` is the memory's."""
        try:
            return self.settings
        except ValidationError as error:
            known = type(self).model_fields
            problems.add_invalid(error, settings_model(self.backend), ("memory", name), known)
            return None

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the keys of each built-in backend as a condition on `backend`."""
        schema = handler.resolve_ref_schema(handler(core))
        own = dict.fromkeys(schema["properties"], True)
        conditions: list[JsonSchemaValue] = []
        for backend, model in built_in_models().items():
            keys = model.model_json_schema()
            required = [] if backend == cls.model_fields["backend"].default else ["backend"]
            conditions.append(
                {
                    "if": {"properties": {"backend": {"const": backend}}, "required": required},
                    "then": keys | {"properties": own | keys["properties"]},
                }
            )
        schema["allOf"] = conditions
        return schema


class SkillConfig(Section):
    """A skill in an agent's card."""

    id: str
    name: str
    description: str
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


class ExtensionConfig(Section):
    """An A2A extension that the agent supports, besides that of its memory."""

    uri: str = Field(min_length=1)
    required: bool = Field(default=False, description="Refuse requests that do not activate it.")
    description: str = ""


class ProviderConfig(Section):
    """The provider in an agent's card."""

    organization: str
    url: str


class ModelSettings(BaseModel):
    """Settings of every call of the model. Other keys are passed to the model unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    temperature: Number | None = Field(default=None, ge=0)
    max_tokens: Whole | None = Field(default=None, gt=0)
    timeout: Number | None = Field(default=None, gt=0, description="Seconds that one call of the model may take.")
    api_base: str | None = Field(default=None, description="The address of the model's endpoint.")
    api_key: SecretStr | None = Field(default=None, description="Better from the environment: ${MY_KEY}.")

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are set, with the key in clear."""
        values = {name: value for name, value in dict(self).items() if value is not None}
        if self.api_key is not None:
            values["api_key"] = self.api_key.get_secret_value()
        return cast(dict[str, Any], yaml_source.untyped(values))


class ModelAgentConfig(Section):
    """The keys of an agent that runs on a model. None of them may stand beside an `executor`."""

    model: str | None = Field(
        default=None, description='"local/smollm2-135m", "openai/gpt-5-mini", "ollama::x", "module:attribute".'
    )
    settings: ModelSettings = ModelSettings()
    system_prompt: str = ""
    max_steps: Whole = Field(default=10, ge=1, description="Calls of the model in one turn, at most.")
    tools: tuple[str, ...] = Field(default=(), description='Python functions, each as "module:function".')
    memory: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"enum": [False, None]}]}
        ),
    ] = Field(default=("default",), description="A name from `memory`, a list of names, or off.")
    memory_mode: Annotated[
        Literal["auto", "tools", "both", "off"],
        BeforeValidator(_mode),
        WithJsonSchema({"enum": ["auto", "tools", "both", "off", False]}),
    ] = Field(
        default="auto",
        description="auto: memories are recalled before each turn and written after it; tools: the model does both.",
    )
    memory_timeout: Number = Field(default=2, gt=0, description="Seconds that the answer waits for recalled memories.")
    memory_top_k: Whole = Field(default=5, ge=1, le=100, description="Memories recalled at once.")


class AgentConfig(ModelAgentConfig):
    """One agent: a model and what it uses, or an `executor` of your own."""

    default: bool = Field(default=False, description="Serve this agent at / too. A single agent always is.")
    description: str = Field(default="", description="What the agent does, for its card.")
    executor: str | None = Field(
        default=None, description='An a2a-sdk AgentExecutor as "module:attribute", instead of a model.'
    )
    input_modes: tuple[str, ...] = Field(
        default=(), description="Accepted media types, for the card; none: text and JSON, any for an executor."
    )
    version: str = Field(default="1.0.0", description="The agent's own version, for its card.")
    skills: tuple[SkillConfig, ...] = ()
    extensions: tuple[ExtensionConfig, ...] = Field(default=(), description="A2A extensions that the agent supports.")
    provider: ProviderConfig | None = None

    @model_validator(mode="after")
    def _model_or_executor(self) -> AgentConfig:
        if self.model is None and self.executor is None:
            raise ValueError('name a model, like "model: local/smollm2-135m", or an executor')
        both = ModelAgentConfig.model_fields.keys() & self.model_fields_set
        if self.executor is not None and both:
            raise ValueError(f"an executor replaces the model: remove {', '.join(sorted(both))}, or the executor")
        return self


def _built_in_agents() -> dict[str, AgentConfig]:
    return {
        "assistant": AgentConfig(
            default=True,
            description="Answers questions and remembers you.",
            model="local/smollm2-135m",
            system_prompt="You are a helpful assistant.\n",
        )
    }


class Config(Section):
    """The whole of retinue.yaml."""

    server: ServerConfig = ServerConfig()
    database: str = Field(
        default="sqlite:///var/retinue.db", description="sqlite:///file.db, relative to the working folder."
    )
    auth: AuthConfig = AuthConfig()
    limits: LimitsConfig = LimitsConfig()
    push: PushConfig = PushConfig()
    retention: RetentionConfig = RetentionConfig()
    memory: dict[str, MemoryConfig] = Field(default_factory=lambda: {"default": MemoryConfig()})
    agents: dict[str, AgentConfig] = Field(default_factory=_built_in_agents, min_length=1)

    _document: Document = PrivateAttr(default_factory=Document)
    _path: Path | None = PrivateAttr(default=None)

    @field_validator("database")
    @classmethod
    def _database_url(cls, value: str) -> str:
        try:
            check_url(value)
        except StoreError as error:
            raise ValueError(str(error)) from error
        return value

    @property
    def path(self) -> Path | None:
        """The file of the configuration. None if it is built in."""
        return self._path

    @property
    def default_agent(self) -> str:
        """The name of the agent at /."""
        return next((name for name, agent in self.agents.items() if agent.default), next(iter(self.agents)))

    def memories_of(self, agent: str) -> tuple[str, ...]:
        """The names of an agent's memories. An agent without the key `memory` has the one named default, if it exists."""
        entry = self.agents[agent]
        if entry.memory_mode == "off":
            return ()
        if "memory" in entry.model_fields_set:
            return entry.memory
        return ("default",) if entry.executor is None and "default" in self.memory else ()

    def problems(self) -> Problems:
        """An empty collection of problems, which knows the lines of this configuration's file."""
        return Problems(self._document, self._path)


def default_config() -> Config:
    """The built-in configuration: one agent on the embedded model, with the built-in memory."""
    return Config()


def load_config(path: Path | str) -> Config:
    """Load a file. Raises InvalidConfig with everything that is wrong in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidConfig([ConfigError(f"not UTF-8 text (byte {error.start + 1})")], path) from error
    except OSError as error:
        raise InvalidConfig([ConfigError(f"cannot be read: {error.strerror or error}")], path) from error
    return parse_config(text, path=path)


def parse_config(text: str, *, path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Parse the text of a file; `path` is the file it came from. Raises InvalidConfig with everything that is wrong."""
    document = yaml_source.read(text, environment)
    problems = Problems(document, path)
    config = _validated(document, problems)
    problems.raise_any()
    assert config is not None  # noqa: S101 - or there are problems
    config._document, config._path = document, path  # pyright: ignore[reportPrivateUsage]
    _check_references(config, document, problems)
    problems.raise_any()
    return config


def _validated(document: Document, problems: Problems) -> Config | None:
    """Validate the data, with the keys of built-in memories. Returns None if there are problems."""
    memories: object = document.data.get("memory")
    for name, entry in memories.items() if isinstance(memories, dict) else ():  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        with suppress(ValidationError):  # it is found again with the whole file
            MemoryConfig.model_validate(entry).check(str(name), problems)  # pyright: ignore[reportUnknownArgumentType]
    try:
        return Config.model_validate(document.data)
    except ValidationError as error:
        problems.add_invalid(error, Config)
        return None


def _check_references(config: Config, document: Document, problems: Problems) -> None:
    """Check what several keys say together."""
    for kind, names in (("agents", config.agents), ("memory", config.memory)):
        for name in names:
            if not _SLUG.fullmatch(name):
                problem = "expected a name of lower-case letters, digits, - and _, at most 63 of them"
                problems.add(problem, kind, name)
    defaults = [name for name, agent in config.agents.items() if agent.default]
    if len(config.agents) > 1 and not defaults:
        problems.add("expected one agent with `default: true`, found none", "agents")
    for extra in defaults[1:]:
        problems.add(f"expected one default, but {defaults[0]} is the default too", "agents", extra, "default")
    for name, agent in config.agents.items():
        if agent.memory_mode in ("tools", "both") and not config.memories_of(name):
            problems.add(f"{agent.memory_mode} needs a memory: name one as `memory`", "agents", name, "memory_mode")
        listed = isinstance(document.value(("agents", name, "memory")), list)
        for index, memory in enumerate(config.memories_of(name)):
            if memory not in config.memory:
                problem = f"there is no memory {memory!r}{suggestion(memory, config.memory)}"
                problems.add(problem, "agents", name, "memory", *((index,) if listed else ()))
