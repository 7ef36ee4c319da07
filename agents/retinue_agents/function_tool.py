"""Python functions as tools: the schema comes from the type hints and the docstring.

    @tool(retry="never")
    async def pay(amount: float, note: str = "", *, context: ToolContext) -> str:
        '''Transfer money.

        Args:
            amount: In euros.
        '''

Arguments are validated before the function runs. A returned string is passed on unchanged, any other value as JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_type_hints, overload

from retinue_memory import ToolSpec
from retinue_memory.errors import ConfigError, ToolError

from .docstring import parse_docstring
from .tools import NeedInput, Retry, ToolContext, ToolResult

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SETTINGS = "__retinue_tool__"


class FunctionTool:
    """A function as a tool. An empty `name` or `description` is taken from the function.

    `timeout` is in seconds. A plain `def` runs in a thread, which keeps running after its timeout; its result is dropped.
    Raises ConfigError if the function's parameters have no JSON Schema.
    """

    def __init__(
        self,
        function: Function,
        name: str = "",
        description: str = "",
        retry: Retry = "always",
        timeout: float | None = None,
    ) -> None:
        name = name or getattr(function, "__name__", type(function).__name__)
        if not _NAME.fullmatch(name):
            raise ConfigError(f"expected a tool name of 1 to 64 letters, digits, _ and -, got {name!r}", key="tools")
        summary, descriptions = parse_docstring(inspect.getdoc(function) or "")
        self.function = function
        self.retry: Retry = retry
        self.timeout = timeout
        self._parameters = _parameters_of(function, name, descriptions)
        self.spec = ToolSpec(name, description or summary, _schema_of(self._parameters.model, name))
        self._async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is async
        )

    @classmethod
    def of(cls, function: Function) -> FunctionTool:
        """Build a tool from a function, with the settings given to `@tool`. Raises ConfigError if it is not callable."""
        if not callable(function):
            raise ConfigError(f"{function!r} is not a function", key="tools", value=function)
        return cls(function, **getattr(function, _SETTINGS, {}))

    async def __call__(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        import pydantic

        name = self.spec.name
        try:
            values = self._parameters.bind(arguments, context)
        except pydantic.ValidationError as error:
            return ToolResult(f"Invalid arguments for {name}: {_problems(error)}", failed=True)
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                result = await (self.function(**values) if self._async else asyncio.to_thread(self.function, **values))
                if inspect.isawaitable(result):
                    result = await result
            return result if isinstance(result, ToolResult) else ToolResult(_as_text(result))
        except NeedInput:
            raise
        except ToolError as error:
            return ToolResult(str(error), failed=True)
        except Exception as error:
            if limit.expired():
                return ToolResult(f"{name} did not answer within {self.timeout:g} seconds", failed=True)
            log.warning("tool %s failed; the model gets the error as its result", name, exc_info=True)
            return ToolResult(f"{name} failed: {type(error).__name__}: {error}", failed=True)


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *, name: str = "", description: str = "", retry: Retry = "always", timeout: float | None = None
) -> Callable[[F], F]: ...
def tool(function: F | None = None, /, **settings: Any) -> F | Callable[[F], F]:
    """Set how a function is used as a tool: `@tool`, or `@tool(retry="never", ...)` with the settings of `FunctionTool`.

    The function itself is returned and stays callable.
    """

    def mark(marked: F) -> F:
        setattr(marked, _SETTINGS, settings)
        return marked

    return mark if function is None else mark(function)


class _Parameters(NamedTuple):
    """A function's parameters: a pydantic model of those that the model fills in, and the one that gets the context.

    The model's attributes are numbered, because a parameter may have the name of one of pydantic's methods.
    """

    model: type[BaseModel]
    names: Mapping[str, str]
    context: str | None

    def bind(self, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """Validate and convert `arguments` to the function's keyword arguments. Raises pydantic.ValidationError."""
        values = self.model.model_validate(dict(arguments))
        bound = {name: getattr(values, attribute) for attribute, name in self.names.items()}
        if self.context is not None:
            bound[self.context] = context
        return bound


def _parameters_of(function: Function, tool_name: str, descriptions: Mapping[str, str]) -> _Parameters:
    import pydantic

    signature, hints = _signature_of(function, tool_name)
    names: dict[str, str] = {}
    context: str | None = None
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(
                f"{tool_name}: expected parameters that can be passed by name, got {parameter}", key="tools"
            )
        if hint is ToolContext or ToolContext in get_args(hint):
            context = parameter.name
            continue
        attribute = f"argument_{len(fields)}"
        default = ... if parameter.default is parameter.empty else parameter.default
        described = pydantic.Field(default, alias=parameter.name, description=descriptions.get(parameter.name))
        fields[attribute] = (hint, described)
        names[attribute] = parameter.name
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    try:
        model: type[BaseModel] = pydantic.create_model(tool_name, __config__=config, **fields)
    except (pydantic.errors.PydanticUserError, TypeError) as error:
        raise _no_schema(tool_name, error) from error
    return _Parameters(model, names, context)


def _signature_of(function: Function, tool_name: str) -> tuple[inspect.Signature, dict[str, Any]]:
    annotated = function if inspect.isroutine(function) else type(function).__call__
    try:
        return inspect.signature(function), get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"{tool_name}: its type hints cannot be read: {error}", key="tools") from error


def _schema_of(model: type[BaseModel], tool_name: str) -> dict[str, Any]:
    import pydantic

    try:
        schema = model.model_json_schema()
    except pydantic.errors.PydanticUserError as error:
        raise _no_schema(tool_name, error) from error
    schema.pop("title", None)
    schema.pop("description", None)
    schema.setdefault("properties", {})
    for property_ in schema["properties"].values():
        property_.pop("title", None)
    return schema


def _no_schema(tool_name: str, error: Exception) -> ConfigError:
    return ConfigError(f"{tool_name}: its parameters have no JSON Schema: {error}", key="tools")


def _as_text(result: Any) -> str:
    if isinstance(result, str):
        return result
    from pydantic_core import to_json

    return to_json(result, fallback=str).decode()


def _problems(error: ValidationError) -> str:
    """Name each wrong argument, without the value that was sent: it may be long."""
    problems = (
        f"{'.'.join(str(part) for part in detail['loc']) or 'arguments'}: {detail['msg']}" for detail in error.errors()
    )
    return "; ".join(problems)
