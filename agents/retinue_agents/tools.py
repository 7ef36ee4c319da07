"""Plain Python functions as tools: the schema from type hints and docstring, errors told to the model.

    @tool(retry="never")
    async def pay(amount: float, note: str = "", *, context: ToolContext) -> str:
        '''Transfer money.

        Args:
            amount: In euros.
        '''

What a model sends is validated before the function runs; what the function returns is text as it is, or JSON.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints, overload

from retinue_memory import (
    InvocationContext,
    ToolCall,
    ToolSpec,
)
from retinue_memory.errors import ConfigError, ToolError

if TYPE_CHECKING:
    from pydantic import BaseModel

log = logging.getLogger(__name__)

Retry = Literal["always", "never"]
Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SETTINGS = "__retinue_tool__"


class NeedInput(Exception):
    """Raise it in a tool to ask the user: the turn ends with the question, and goes on with their next message."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


class ToolResult(NamedTuple):
    """What the model is told of a call; a tool may return one itself. `failed`: `content` says what went wrong."""

    content: str
    failed: bool = False


@dataclass(eq=False)
class Tool:
    """A function that a model may call. `name` and `description` are the function's own where they are left empty.

    `retry="never"`: a call whose outcome a crash left unknown is not made again. `timeout` is in seconds; a plain `def`
    runs in a thread, which goes on after its timeout, unheard. Raises ConfigError where no schema can be made.
    """

    function: Function
    name: str = ""
    description: str = ""
    retry: Retry = "always"
    timeout: float | None = None
    _context: str | None = field(default=None, init=False, repr=False)
    _names: dict[str, str] = field(default_factory=dict[str, str], init=False, repr=False)

    def __post_init__(self) -> None:
        self.name = self.name or getattr(self.function, "__name__", type(self.function).__name__)
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"{self.name!r} is no name for a tool: use letters, digits, _ and -, at most 64", key="tools"
            )
        summary, self._said_of = _read_docstring(inspect.getdoc(self.function) or "")
        self.description = self.description or summary
        self._async = inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            getattr(self.function, "__call__", None)  # noqa: B004 - an object whose __call__ is async
        )
        self._arguments = self._model_of_arguments()

    @classmethod
    def of(cls, thing: Tool | Function) -> Tool:
        """`thing` as a tool, with the settings that `@tool` gave it."""
        if isinstance(thing, Tool):
            return thing
        if not callable(thing):
            raise ConfigError(f"{thing!r} is not a function", key="tools", value=thing)
        return cls(thing, **getattr(thing, _SETTINGS, {}))

    @cached_property
    def spec(self) -> ToolSpec:
        """The tool as a model is told of it."""
        schema = self._arguments.model_json_schema()
        schema.pop("title", None)
        schema.pop("description", None)
        schema.setdefault("properties", {})
        for property_ in schema["properties"].values():
            property_.pop("title", None)
        return ToolSpec(self.name, self.description, schema)

    def done_by(self, function: Function) -> Tool:
        """The same tool, whose work another function of the same parameters does."""
        other = copy.copy(self)
        other.function = function
        return other

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Validate, run, and put the outcome into words. Lets `NeedInput` and cancellation through, nothing else."""
        import pydantic

        try:
            values = self._arguments.model_validate(dict(arguments))
        except pydantic.ValidationError as error:
            return ToolResult(f"The arguments of {self.name} are wrong. {_in_words(error)}", failed=True)
        named = {name: getattr(values, attribute) for attribute, name in self._names.items()}
        if self._context is not None:
            named[self._context] = context
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                result = await (self.function(**named) if self._async else asyncio.to_thread(self.function, **named))
                if inspect.isawaitable(result):
                    result = await result
            return result if isinstance(result, ToolResult) else ToolResult(_as_text(result))
        except NeedInput:
            raise
        except ToolError as error:
            return ToolResult(str(error), failed=True)
        except Exception as error:
            if limit.expired():
                return ToolResult(f"{self.name} did not answer within {self.timeout:g} seconds", failed=True)
            log.warning("tool %s failed", self.name, exc_info=True)
            return ToolResult(f"{self.name} failed: {type(error).__name__}: {error}", failed=True)

    def _model_of_arguments(self) -> type[BaseModel]:
        """A pydantic model of the parameters; its attributes are numbered, for a parameter may be named like its methods."""
        import pydantic

        signature, hints = self._signature()
        fields: dict[str, Any] = {}
        for parameter in signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise ConfigError(f"{self.name}: a model can only give {parameter} by name", key="tools")
            if hint is ToolContext or ToolContext in get_args(hint):
                self._context = parameter.name
                continue
            attribute = f"argument_{len(fields)}"
            default = ... if parameter.default is parameter.empty else parameter.default
            said = self._said_of.get(parameter.name)
            fields[attribute] = (hint, pydantic.Field(default, alias=parameter.name, description=said))
            self._names[attribute] = parameter.name
        try:
            return pydantic.create_model(
                self.name, __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False), **fields
            )
        except (pydantic.errors.PydanticUserError, TypeError) as error:
            raise ConfigError(f"{self.name}: no schema for its parameters: {error}", key="tools") from error

    def _signature(self) -> tuple[inspect.Signature, dict[str, Any]]:
        annotated = self.function if inspect.isroutine(self.function) else type(self.function).__call__
        try:
            return inspect.signature(self.function), get_type_hints(annotated, include_extras=True)
        except (NameError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.name}: its type hints cannot be read: {error}", key="tools") from error


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *, name: str = "", description: str = "", retry: Retry = "always", timeout: float | None = None
) -> Callable[[F], F]: ...
def tool(function: F | None = None, /, **settings: Any) -> F | Callable[[F], F]:
    """Settings for a function that will be a tool: `@tool` or `@tool(retry="never", ...)`, as `Tool` has them.

    The function stays what it was, and can be called and tested as such.
    """

    def mark(marked: F) -> F:
        setattr(marked, _SETTINGS, settings)
        return marked

    return mark if function is None else mark(function)


def open_tool(spec: str) -> Tool:
    """The tool that a config names as "module:function". Raises ConfigError, one kind each for what can be wrong."""
    from retinue_memory.importer import import_from_string

    return Tool.of(import_from_string(spec))


def _as_text(result: Any) -> str:
    if isinstance(result, str):
        return result
    from pydantic_core import to_json

    return to_json(result, fallback=str).decode()


def _in_words(error: Any) -> str:
    """One line a wrong argument, without what was sent: it may be long."""
    problems = (
        f"{'.'.join(str(part) for part in detail['loc']) or 'arguments'}: {detail['msg']}" for detail in error.errors()
    )
    return "; ".join(problems)


_GOOGLE_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_OTHER_SECTION = re.compile(r"^(Returns?|Raises|Yields|Examples?|Notes?|Attributes):\s*$")
_GOOGLE_ARGUMENT = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX_ARGUMENT = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$")
_SPHINX_FIELD = re.compile(r"^:\w+[^:]*:")


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each of its arguments (Google's or Sphinx's style)."""
    summary: list[str] = []
    said_of: dict[str, list[str]] = {}
    into: list[str] | None = summary
    arguments_indent: int | None = None  # inside a Google section; -1 until its first argument is seen
    for line in text.splitlines():
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if _GOOGLE_SECTION.match(line):
            arguments_indent, into = -1, None
        elif _OTHER_SECTION.match(line):
            arguments_indent, into = None, None
        elif match := _SPHINX_ARGUMENT.match(stripped):
            into = said_of[match[1]] = [match[2]]
        elif _SPHINX_FIELD.match(stripped):
            into = None
        elif arguments_indent is not None and stripped:
            if indent == 0:  # the section is over
                arguments_indent, into = None, summary
                summary.append(stripped)
            elif (match := _GOOGLE_ARGUMENT.match(stripped)) and arguments_indent in (-1, indent):
                arguments_indent = indent
                into = said_of[match[1]] = [match[2]]
            elif into is not None:
                into.append(stripped)
        elif into is not None:
            into.append(stripped)
    return "\n".join(summary).strip(), {name: " ".join(said).strip() for name, said in said_of.items()}


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may know of its call: a parameter annotated with this type receives it and is hidden from the model."""

    ctx: InvocationContext
    call: ToolCall
    key: str
    """The idempotency key: the same for every attempt of this call, different for every other call."""
