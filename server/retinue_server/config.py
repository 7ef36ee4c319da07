"""retinue.yaml: its schema, how it is loaded, and errors that name the key, the line and the way out.

The defaults of these models are the built-in configuration; `config/retinue.yaml` is the same, explained.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from retinue_memory.database.url import check_url
from retinue_memory.errors import ConfigError, StoreError

from . import yaml_source
from .yaml_source import Document, Expanded, dotted

DEFAULT_FILE = Path("config/retinue.yaml")
"""What `retinue serve` reads where no file is named and this one is there."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SECRET = re.compile(r"(^|_)(api)?(key|token|secret|password|credentials?)$|^database$", re.IGNORECASE)


class InvalidConfig(ConfigError):
    """Everything that is wrong with a configuration: correct each of `errors`, which stand in the order of the file."""

    def __init__(self, errors: Sequence[ConfigError], path: Path | None = None) -> None:
        self.errors = sorted(errors, key=lambda error: error.line or 0)
        self.path = path
        where = f"{path}: " if path else ""
        super().__init__("\n".join(f"{where}{error}" for error in self.errors))


def _no_boolean(value: object) -> object:
    """YAML's `yes` and `on` are no numbers, whatever Python thinks."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "a boolean is no number")
    return value


_Whole = Annotated[int, BeforeValidator(_no_boolean)]
_Number = Annotated[float, BeforeValidator(_no_boolean)]


def _mode(value: object) -> object:
    """YAML reads off as false."""
    return "off" if value is False else value


def _names(value: object) -> object:
    """A name, a list of names, or off (which YAML reads as false) as a list of names."""
    if value is False or value is None or value == "off":
        return ()
    return (value,) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the file. Keys that are not known are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(Section):
    """Where the server listens."""

    host: str = Field(default="127.0.0.1", description="The address to listen on. 127.0.0.1: this machine only.")
    port: _Whole = Field(default=9000, ge=0, le=65535, description="The port to listen on; 0 takes any free one.")
    public_url: str | None = Field(
        default=None, description="How callers reach the server, for the agent cards. null: as the request did."
    )

    grpc_port: _Whole | None = Field(
        default=None, ge=0, le=65535, description="Where the default agent speaks gRPC; null: nowhere."
    )
    grace: _Number = Field(default=10, ge=0, description="Seconds that a stop waits for what is being worked on.")

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
    """How much may wait. Beyond it, a message is refused at once, and can be sent again later."""

    turns: _Whole = Field(default=10_000, ge=1, description="Messages being worked on or waiting, over all users.")
    waiting: _Whole = Field(default=32, ge=1, description="Messages being worked on or waiting in one context.")


class PushConfig(Section):
    """Push notifications: where they may go, and how long they are tried."""

    allow: tuple[str, ...] = Field(
        default=(), description="Hosts or networks that may be called although they are not public."
    )
    tries: _Whole = Field(default=10, ge=1, description="After this many a notification is given up.")


class RetentionConfig(Section):
    """How long what has ended is kept."""

    days: _Number | None = Field(default=30, gt=0, description="Days that ended tasks are kept; null: for ever.")


class AuthConfig(Section):
    """Who may call."""

    mode: Literal["none"] = Field(
        default="none", description="none: whoever reaches the server may act for every user."
    )


class MemoryConfig(BaseModel):
    """One memory. Keys other than these are its backend's own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    backend: str = Field(default="native", description='native, the name of an adapter, or "module:attribute".')
    write_timeout: float = Field(
        default=30.0, gt=0, description="Seconds that a write may take; then it is tried again."
    )
    write_tries: _Whole = Field(default=40, ge=1, description="After this many a write is given up.")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return yaml_source.untyped(value)

    @property
    def entry(self) -> dict[str, Any]:
        """The entry as `open_memory` takes it."""
        return self.model_dump(exclude={"write_timeout", "write_tries"})


class SkillConfig(Section):
    """Something the agent is good at, as its card tells callers."""

    id: str
    name: str
    description: str
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


class ExtensionConfig(Section):
    """An A2A extension that the agent supports, beside the one of its memory."""

    uri: str = Field(min_length=1)
    required: bool = Field(default=False, description="Whether a request that does not name it is refused.")
    description: str = ""


class ProviderConfig(Section):
    """Who offers the agent."""

    organization: str
    url: str


class ModelSettings(BaseModel):
    """What every call of the model is given. Keys that are not named here go to the model as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    temperature: _Number | None = Field(default=None, ge=0)
    max_tokens: _Whole | None = Field(default=None, gt=0)
    timeout: _Number | None = Field(default=None, gt=0, description="Seconds that one call of the model may take.")
    api_base: str | None = Field(default=None, description="The address of the model's endpoint.")
    api_key: SecretStr | None = Field(default=None, description="Better from the environment: ${MY_KEY}.")

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are set, the key in clear."""
        values = {name: value for name, value in dict(self).items() if value is not None}
        if self.api_key is not None:
            values["api_key"] = self.api_key.get_secret_value()
        return cast(dict[str, Any], yaml_source.untyped(values))


_OF_A_MODEL = frozenset(
    [
        "model",
        "settings",
        "system_prompt",
        "max_steps",
        "tools",
        "memory",
        "memory_mode",
        "memory_timeout",
        "memory_top_k",
    ]
)
"""The keys of an agent that an executor takes the place of."""


class AgentConfig(Section):
    """One agent: a model with what it needs, or an `executor` of your own instead."""

    default: bool = Field(default=False, description="Whether the agent is the one at /. A single agent always is.")
    description: str = Field(default="", description="What the agent does, for its card.")
    model: str | None = Field(
        default=None, description='"local/smollm2-135m", "openai/gpt-5-mini", "ollama::x", "module:attr".'
    )
    settings: ModelSettings = ModelSettings()
    system_prompt: str = ""
    max_steps: _Whole = Field(default=10, ge=1, description="How many times the model may be called for one turn.")
    tools: tuple[str, ...] = Field(default=(), description='Python functions, each as "module:function".')
    memory: Annotated[
        tuple[str, ...],
        BeforeValidator(_names),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"enum": [False, None]}]}
        ),
    ] = Field(default=("default",), description="A name from `memory`, a list of them, or off.")
    memory_mode: Annotated[
        Literal["auto", "tools", "both", "off"],
        BeforeValidator(_mode),
        WithJsonSchema({"enum": ["auto", "tools", "both", "off", False]}),
    ] = Field(
        default="auto",
        description="auto: recalled before and written after each turn; tools: the model searches, adds and forgets.",
    )
    memory_timeout: _Number = Field(default=2, gt=0, description="Seconds that the answer waits for what is recalled.")
    memory_top_k: _Whole = Field(default=5, ge=1, le=100, description="How many memories are recalled at once.")
    executor: str | None = Field(
        default=None, description='An a2a-sdk AgentExecutor as "module:attr", instead of a model.'
    )
    input_modes: tuple[str, ...] = Field(
        default=(), description="Media types it takes, for its card; nothing: text and JSON, any for an executor."
    )
    version: str = Field(default="1.0.0", description="The agent's own version, for its card.")
    skills: tuple[SkillConfig, ...] = ()
    extensions: tuple[ExtensionConfig, ...] = Field(default=(), description="A2A extensions that it supports.")
    provider: ProviderConfig | None = None

    @model_validator(mode="after")
    def _model_or_executor(self) -> AgentConfig:
        if self.model is None and self.executor is None:
            raise ValueError('name a model, like "model: local/smollm2-135m", or an executor')
        both = _OF_A_MODEL & self.model_fields_set
        if self.executor is not None and both:
            raise ValueError(f"an executor does its own work: {', '.join(sorted(both))} cannot stand beside it")
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
        """The file the configuration came from; None where it is built in."""
        return self._path

    @property
    def default_agent(self) -> str:
        """The name of the agent at /."""
        return next((name for name, agent in self.agents.items() if agent.default), next(iter(self.agents)))

    def memories_of(self, agent: str) -> tuple[str, ...]:
        """The names of an agent's memories: those it names; where it says nothing, the one named default, if there is one. None
        where its mode is off."""
        entry = self.agents[agent]
        if entry.memory_mode == "off":
            return ()
        if "memory" in entry.model_fields_set:
            return entry.memory
        return ("default",) if entry.executor is None and "default" in self.memory else ()

    def error(self, problem: str, *at: str | int) -> ConfigError:
        """A ConfigError about the key at this path, with the line it has in the file."""
        return ConfigError(problem, key=dotted(at), line=self._document.line(at))

    def locate(self, error: ConfigError, *at: str | int) -> ConfigError:
        """`error`, told that it is about the key at this path."""
        error.key, error.line = dotted(at), self._document.line(at)
        return error


def default_config() -> Config:
    """The built-in configuration: one agent on the embedded model, with the built-in memory."""
    return Config()


def load_config(path: Path | str) -> Config:
    """Read a file. Raises InvalidConfig with everything that is wrong in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidConfig([ConfigError(f"not UTF-8 text (byte {error.start + 1})")], path) from error
    except OSError as error:
        raise InvalidConfig([ConfigError(f"cannot be read: {error.strerror or error}")], path) from error
    return parse_config(text, path=path)


def parse_config(text: str, *, path: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read a configuration from its text; `path` is where it came from. Raises InvalidConfig."""
    found = yaml_source.read(text, environment)
    try:
        config = Config.model_validate(found.data)
    except ValidationError as error:
        told = {problem.key for problem in found.errors}
        more = [problem for problem in _explain(error, found) if problem.key not in told]
        raise InvalidConfig([*found.errors, *more], path) from None
    if found.errors:
        raise InvalidConfig(found.errors, path)
    config._document, config._path = found, path  # pyright: ignore[reportPrivateUsage]
    problems = list(_cross_check(config))
    if problems:
        raise InvalidConfig(problems, path)
    return config


def _cross_check(config: Config) -> list[ConfigError]:
    """What one key alone cannot tell."""
    problems = [
        config.error("a name is made of lower-case letters, digits, - and _, at most 63 of them", kind, name)
        for kind, names in (("agents", config.agents), ("memory", config.memory))
        for name in names
        if not _SLUG.fullmatch(name)
    ]
    defaults = [name for name, agent in config.agents.items() if agent.default]
    if len(config.agents) > 1 and not defaults:
        problems.append(
            config.error("several agents and none is the default: give one of them `default: true`", "agents")
        )
    problems += [
        config.error(f"{defaults[0]} is the default already: there can be one", "agents", extra, "default")
        for extra in defaults[1:]
    ]
    for name, agent in config.agents.items():
        if agent.memory_mode in ("tools", "both") and not config.memories_of(name):
            problem = f"{agent.memory_mode} needs a memory: name one as `memory`"
            problems.append(config.error(problem, "agents", name, "memory_mode"))
        for index, memory in enumerate(config.memories_of(name)):
            if memory not in config.memory:
                listed = isinstance(config._document.data["agents"][name].get("memory"), list)  # pyright: ignore[reportPrivateUsage]
                at = ("agents", name, "memory", index) if listed else ("agents", name, "memory")
                problem = f"no memory is named {memory!r}{_nearest(memory, config.memory)}"
                problems.append(config.error(problem, *at))
    return problems


# -- pydantic's findings in our words -------------------------------------------------------------------------------------

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "number_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "tuple_type": "a list",
    "list_type": "a list",
}


def _explain(error: ValidationError, found: Document) -> list[ConfigError]:
    problems: list[ConfigError] = []
    for detail in error.errors(include_url=False):
        at, value = detail["loc"], detail["input"]
        problem = _problem(detail["type"], at, value, detail.get("ctx", {}), detail["msg"])
        shown = None if _is_secret(at, value) else value
        problems.append(ConfigError(problem, key=dotted(at) or None, value=shown, line=found.line(at)))
    return problems


def _problem(kind: str, at: yaml_source.Path, value: object, ctx: Mapping[str, Any], message: str) -> str:
    got = _shown(at, value)
    match kind:
        case _ if kind in _EXPECTED:
            quote = ": put it in quotes" if kind == "string_type" and isinstance(value, int | float) else ""
            return f"expected {_EXPECTED[kind]}, got {got}{quote}"
        case "extra_forbidden":
            known = _fields(at[:-1])
            return f"unknown key{_nearest(str(at[-1]), known)}"
        case "missing":
            return "is missing"
        case "literal_error":
            return f"expected {ctx['expected'].replace(chr(39), '')}, got {got}"
        case "greater_than" | "greater_than_equal":
            least = f"{ctx['ge']:g} or more" if "ge" in ctx else f"more than {ctx['gt']:g}"
            return f"expected {least}, got {got}"
        case "less_than" | "less_than_equal":
            return f"expected {ctx.get('le', ctx.get('lt'))} or less, got {got}"
        case "too_short":
            return "is empty: at least one is needed"
        case "value_error":
            return str(ctx["error"])
        case _:
            return f"{message[:1].lower()}{message[1:]}"


def _shown(at: yaml_source.Path, value: object) -> str:
    """What stood there, in a few words, and never a secret."""
    if isinstance(value, Expanded):
        return value.source
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    if _is_secret(at, value):
        return "something else"
    if isinstance(value, bool):
        return f"{str(value).lower()} (YAML reads yes, no, on and off so)"
    if isinstance(value, int | float):
        return f"the number {value}"
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _is_secret(at: yaml_source.Path, value: object) -> bool:
    return isinstance(value, Expanded) or any(isinstance(part, str) and _SECRET.search(part) for part in at)


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there is: {', '.join(known)}" if known else ""


def _fields(at: yaml_source.Path) -> Mapping[str, Any]:
    """The keys that are known at a path, found by walking the models."""
    shape: Any = Config
    for part in at:
        fields: Mapping[str, Any] = getattr(shape, "model_fields", {})
        shape = fields[str(part)].annotation if part in fields else shape
        if get_origin(shape) in (Union, types.UnionType):
            shape = next(option for option in get_args(shape) if option is not type(None))
        elif part not in fields and get_args(shape):
            shape = next(option for option in reversed(get_args(shape)) if option is not Ellipsis)
    return getattr(shape, "model_fields", {})
