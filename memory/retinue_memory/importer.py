"""From a "module:attribute" to the object it names: the one importer of everything that a config may name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection
from typing import Any

from .chat import ChatModel
from .errors import ConfigError, ImportAttributeError, ImportFormatError, ImportModuleError


def import_from_string(spec: str) -> Any:
    """The object that "module:attribute" names; the attribute may be dotted.

    Raises ImportFormatError if `spec` has another form, ImportModuleError if the module does not exist,
    ImportAttributeError if the module has no such attribute, and ConfigError with the cause if importing the module fails.
    """
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ImportFormatError(f'{spec!r} is not of the form "module:attribute"', value=spec)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ImportModuleError(f"there is no module {error.name!r} (needed for {spec!r})", value=spec) from None
        problem = f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(problem, value=spec) from error
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = nearest(name, dir(found))
            raise ImportAttributeError(f"{module_name!r} has no attribute {attribute!r}{near}", value=spec) from None
    return found


def import_chat_model(spec: str | ChatModel, **settings: Any) -> ChatModel:
    """The `ChatModel` that "module:attribute" names: an instance, or a class, created with `settings`. A `ChatModel` is
    returned as it is. Raises ConfigError with the key `model`."""
    if isinstance(spec, ChatModel):
        return spec
    try:
        found = import_from_string(spec)
    except ConfigError as error:
        error.key = error.key or "model"
        raise
    if isinstance(found, type) and issubclass(found, ChatModel):
        try:
            return found(**settings)
        except TypeError as error:
            raise ConfigError(f"{spec!r} cannot be created: {error}", key="model", value=spec) from error
    if not isinstance(found, ChatModel):
        raise ConfigError(f"{spec!r} is neither a ChatModel nor a class of one", key="model", value=spec)
    if settings:
        raise ConfigError(f"{spec!r} is an instance and takes no settings", key="model", value=spec)
    return found


def nearest(name: str, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: '; did you mean "x"?'. Returns "" if none is similar."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def suggestion(name: str, known: Collection[str]) -> str:
    """As `nearest`; if none is similar, all that are known."""
    return nearest(name, known) or (f"; there is: {', '.join(known)}" if known else "")
