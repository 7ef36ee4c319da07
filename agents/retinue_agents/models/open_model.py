"""From a model's name to a `ChatModel`. Weights and LiteLLM are loaded at the first request.

    local/smollm2-135m            the embedded model
    echo                          repeats the message: for trying things out
    openai/gpt-5-mini, gpt-5-mini a LiteLLM name
    ollama::qwen3.5:latest        provider and model, split at the first "::"
    my_package.models:MyModel     a `ChatModel`: an instance, or a class, created with the settings

Many model names have a ":" too. A spec with "::", or with "/" before its first ":", is a model's name; any other spec with
":" is "module:attribute". So an Ollama tag needs its provider: "ollama_chat/qwen3.5:latest".
"""

from __future__ import annotations

import re
from typing import Any

from retinue_memory import ChatModel
from retinue_memory.errors import ConfigError
from retinue_memory.importer import import_chat_model

_PROVIDERS = {"azure-openai": "azure", "x.ai": "xai", "google": "gemini", "ollama": "ollama_chat"}
"""Providers that have another name in LiteLLM. (Its "ollama" flattens a conversation into one text, and has no tools.)"""
_PROVIDER = re.compile(r"[\w.-]+")


def open_model(spec: str | ChatModel, **settings: Any) -> ChatModel:
    """The model that `spec` names; a `ChatModel` is returned as it is.

    `settings` are passed to its constructor, which raises TypeError for an unknown one. Raises ConfigError for an unknown
    local model or a malformed name, and for a "module:attribute" as `import_from_string` does. Whether a LiteLLM name
    exists is known at the first request; see `check_model`.
    """
    if isinstance(spec, ChatModel):
        return spec
    if not spec or spec != spec.strip() or any(character.isspace() for character in spec):
        raise ConfigError("a model's name has no spaces and is not empty", key="model", value=spec)
    if spec == "echo":
        from retinue_agents.testing import EchoModel

        return EchoModel(**settings)
    if spec.startswith("local/"):
        from .local import LocalChat

        return LocalChat(spec.removeprefix("local/"), **settings)
    if _is_import(spec):
        return import_chat_model(spec, **settings)
    from .litellm import LiteLLMChat

    return LiteLLMChat(_litellm_name(spec), **settings)


def check_model(spec: str | ChatModel) -> None:
    """Check a model's name, and import LiteLLM to check that it knows the provider. Raises ConfigError."""
    model = open_model(spec)
    if isinstance(spec, str) and spec != "echo" and not spec.startswith("local/") and not _is_import(spec):
        from .litellm import check_provider

        check_provider(model.name)


def _is_import(spec: str) -> bool:
    before, colon, _ = spec.partition(":")
    return bool(colon) and "/" not in before and "::" not in spec


def _litellm_name(spec: str) -> str:
    provider, separator, model = spec.partition("::")
    if not separator or "/" in provider:
        return spec
    if not _PROVIDER.fullmatch(provider) or not model:
        raise ConfigError(f'{spec!r} is not of the form "provider::model"', key="model", value=spec)
    return f"{_PROVIDERS.get(provider, provider)}/{model}"
