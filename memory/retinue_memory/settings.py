"""Settings of memories as pydantic models: the base class, the types of keys, and pydantic's errors in plain words.

Import this module only to check settings: importing pydantic takes a tenth of a second, and a program that creates its
memory in code does not need it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from .chat import ChatModel
from .database.url import check_url
from .errors import ConfigError, StoreError
from .importer import import_from_string, suggestion

ModelT = TypeVar("ModelT", bound=BaseModel)

KeyPath = tuple[str | int, ...]
"""The place of a value in nested settings: ("agents", "helper", "tools", 0)."""

_BUILT_IN: Mapping[str, str] = {
    "native": "retinue_memory.native.settings:NativeSettings",
    "mem0": "retinue_memory.mem0.settings:CloudSettings",
    "mem0-server": "retinue_memory.mem0.settings:ServerSettings",
    "mem0-local": "retinue_memory.mem0.settings:LocalSettings",
}
_SECRET = re.compile(r"(^|_)(api)?(key|token|secret|password|credentials?)$|^database$", re.IGNORECASE)


class MemorySettings(BaseModel):
    """The keys of a memory's config entry, without `backend`. This class accepts any key; subclasses refuse unknown ones."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def uses_embedder(self) -> bool:
        """Whether the memory loads the built-in embedder."""
        return False

    @property
    def model_name(self) -> str | None:
        """The name of the chat model to hand to the memory as its `model`. Returns None if there is nothing to open."""
        return None


def settings_model(backend: str) -> type[MemorySettings]:
    """The model of a built-in backend. Any other gets `MemorySettings`: its own model is known once it is imported."""
    if backend not in _BUILT_IN:
        return MemorySettings
    model: type[MemorySettings] = import_from_string(_BUILT_IN[backend])
    return model


def built_in_models() -> dict[str, type[MemorySettings]]:
    """The models of all built-in backends, by backend."""
    return {backend: settings_model(backend) for backend in _BUILT_IN}


def check(model: type[ModelT], entry: Mapping[str, Any]) -> ModelT:
    """Validate an entry. Raises ConfigError for the first problem; its `key` is a key of the entry."""
    try:
        return model.model_validate(dict(entry))
    except ValidationError as error:
        first = next(problems(error, model))
        raise ConfigError(first.text, key=str(first.at[0]) if first.at else None, value=first.value) from None


# -- types of keys ------------------------------------------------------------------------------------------------------


def _no_boolean(value: object) -> object:
    """Refuse a boolean, which Python counts as a number."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "expected a number, got a boolean")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("string_too_short", "is empty")
    return value


def _sqlite_address(value: object) -> object:
    try:
        if isinstance(value, str):
            check_url(value)
            return value
    except StoreError as error:
        raise ValueError(str(error)) from None
    raise ValueError("expected an address like sqlite:///file.db")


def _model_or_name(value: object) -> object:
    if value is None or isinstance(value, str | ChatModel):
        return value
    raise ValueError('expected a ChatModel or the "module:attribute" of one')


def _off_is_none(value: object) -> object:
    return None if value in (False, "off", "none") else value


def _off_is_empty(value: object) -> object:
    return () if value in (False, None, "off", "none") else value


Whole = Annotated[int, BeforeValidator(_no_boolean)]
Number = Annotated[float, BeforeValidator(_no_boolean)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_no_boolean)]
PositiveOrOff = Annotated[
    Positive | None,
    BeforeValidator(_off_is_none),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"enum": ["off", False, None]}]}),
]
Text = Annotated[str, AfterValidator(_not_blank)]
NamesOrOff = Annotated[
    tuple[str, ...],
    BeforeValidator(_off_is_empty),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"enum": ["off", False, None]}]}),
]
Address = Annotated[str, BeforeValidator(_sqlite_address)]
Model = Annotated[
    Any,  # a ChatModel or its name
    BeforeValidator(_model_or_name),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]


# -- pydantic's errors in plain words -----------------------------------------------------------------------------------

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "number_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "tuple_type": "a list",
    "list_type": "a list",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with settings. `value` is None if it may be a secret."""

    at: KeyPath
    text: str
    value: object


def shown(at: KeyPath, value: object) -> str:
    """Describe a wrong value in a few words, without showing a secret."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    if is_secret(at):
        return "something else"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def is_secret(at: KeyPath) -> bool:
    return any(isinstance(part, str) and _SECRET.search(part) for part in at)


def problems(
    error: ValidationError,
    model: type[BaseModel],
    shown: Callable[[KeyPath, object], str] = shown,
    also: Collection[str] = (),
) -> Iterator[Problem]:
    """Translate what pydantic found when it validated `model`.

    `shown` describes a wrong value. `also` are keys that are known beside those of the model, which somebody else reads.
    """
    details = error.errors(include_url=False)
    for detail in sorted(
        details, key=lambda detail: detail["type"] != "extra_forbidden"
    ):  # it may be a missing key, misspelt
        at, value = detail["loc"], detail["input"]
        text = _text(detail, model, shown(at, value), also)
        yield Problem(at, text, None if is_secret(at) else value)


def _text(detail: ErrorDetails, model: type[BaseModel], got: str, also: Collection[str]) -> str:
    kind, at, value, ctx = detail["type"], detail["loc"], detail["input"], detail.get("ctx", {})
    match kind:
        case _ if kind in _EXPECTED:
            quote = ": put it in quotes" if kind == "string_type" and isinstance(value, int | float) else ""
            return f"expected {_EXPECTED[kind]}, got {got}{quote}"
        case "extra_forbidden":
            known = [*known_keys(model, at[:-1]), *(also if len(at) == 1 else ())]
            return f"unknown key{suggestion(str(at[-1]), known)}"
        case "missing":
            return f"is missing{_meaning(model, at)}"
        case "literal_error":
            return f"expected {ctx['expected'].replace(chr(39), '')}, got {got}"
        case "greater_than" | "greater_than_equal":
            least = f"{ctx['ge']:g} or more" if "ge" in ctx else f"more than {ctx['gt']:g}"
            return f"expected {least}, got {got}"
        case "less_than" | "less_than_equal":
            return f"expected {ctx.get('le', ctx.get('lt'))} or less, got {got}"
        case "too_short":
            return "is empty: at least one is needed"
        case "string_too_short":
            return f"is empty{_meaning(model, at)}"
        case "value_error":
            return str(ctx["error"])
        case _:
            return f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"


def known_keys(model: type[BaseModel], at: KeyPath) -> Mapping[str, FieldInfo]:
    """The fields of the model that validates the settings at a path, found by walking from `model`."""
    shape: Any = model
    for part in at:
        fields: Mapping[str, FieldInfo] = getattr(shape, "model_fields", {})
        shape = fields[str(part)].annotation if part in fields else shape
        if get_origin(shape) in (Union, types.UnionType):
            shape = next(option for option in get_args(shape) if option is not type(None))
        elif part not in fields and get_args(shape):
            shape = next(option for option in reversed(get_args(shape)) if option is not Ellipsis)
    return getattr(shape, "model_fields", {})


def _meaning(model: type[BaseModel], at: KeyPath) -> str:
    """The description of a field as the end of a sentence. Returns "" if it has none."""
    field = known_keys(model, at[:-1]).get(str(at[-1]))
    description = field.description if field is not None else None
    return f": {description[:1].lower()}{description[1:].rstrip('.')}" if description else ""
