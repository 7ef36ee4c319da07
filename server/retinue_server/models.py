"""The chat models of a configuration."""

from __future__ import annotations

import importlib.util
from typing import Any

from retinue_agents.models.open_model import check_model, open_model
from retinue_memory import ChatModel
from retinue_memory.errors import ConfigError

from .resources import Resources


class Models:
    """Opens chat models by name, and has them closed at the end.

    `deep` imports LiteLLM to check that it knows the provider of a model.
    """

    def __init__(self, resources: Resources, *, deep: bool = False) -> None:
        self._resources = resources
        self._deep = deep

    def open(self, name: str, **settings: Any) -> ChatModel:
        """Raises ConfigError; its key is one of `settings`, or else the name is wrong."""
        if name.startswith("local/") and importlib.util.find_spec("xllamacpp") is None:
            raise ConfigError("local models need xllamacpp, which is not installed: pip install 'retinue[local]'")
        try:
            model = open_model(name, **settings)
        except TypeError as error:
            raise ConfigError(f"{name} does not take these settings: {error}", key="settings") from error
        if self._deep:
            check_model(name)
        self._resources.add(f"model {model.name}", model.aclose)
        return model
