"""From a model's name to a `ChatModel`. LiteLLM and the weights are not loaded before the first request.

    local/smollm2-135m            the embedded model
    echo                          repeats the user's message: for trying things out
    openai/gpt-5-mini, gpt-5-mini a LiteLLM name
    ollama::qwen3.5:latest        provider and model, split at the first "::"
    my_package.models:MyModel     a `ChatModel`: an instance, or a class that needs no arguments

Many model names contain a ":" themselves. A name with a "/" before its ":", or with a "::", is a LiteLLM name; any other
with a ":" is "module:attribute". So an Ollama tag needs its provider: "ollama_chat/qwen3.5:latest".
"""

from __future__ import annotations

import re
from typing import Any

from retinue_memory import ChatModel
from retinue_memory.errors import ConfigError
from retinue_memory.importer import import_chat_model

_PROVIDERS = {"azure-openai": "azure", "x.ai": "xai", "google": "gemini", "ollama": "ollama_chat"}
"""Providers that LiteLLM has another name for. (Its "ollama" joins a conversation to one text, and cannot call tools.)"""
_PROVIDER = re.compile(r"[\w.-]+")


def open_model(spec: str | ChatModel, **settings: Any) -> ChatModel:
    """Open the model that `spec` names. A `ChatModel` is returned unchanged.

    `settings` are passed to its constructor, which raises TypeError for an unknown one. Raises ConfigError if the name is
    malformed or no local model has it, and ImportFormatError, ImportModuleError or ImportAttributeError if "module:attribute"
    cannot be imported. A LiteLLM name is checked at the first request, or by `check_model`.
    """
    if isinstance(spec, ChatModel):
        return spec
    if not spec or spec != spec.strip() or any(character.isspace() for character in spec):
        raise ConfigError("expected a model's name without spaces, not empty", key="model", value=spec)
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
    """Raise ConfigError if `spec` is invalid, or a LiteLLM name with an unknown provider. Imports litellm for the latter."""
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
