"""The agents of a configuration, as a2a-sdk executors."""

from __future__ import annotations

from functools import partial
from typing import Any

from a2a.server.agent_execution import AgentExecutor

from retinue_agents import Agent, open_tool
from retinue_memory import ChatModel, Memory
from retinue_memory.errors import ConfigError
from retinue_memory.importer import import_from_string

from .a2a.executor import A2AExecutor, History
from .a2a.foreign import turn_executor
from .config import AgentConfig, Config
from .config_errors import Problems
from .delivery.memory_outbox import Outbox, OutboxMemory
from .models import Models
from .resources import Resources
from .runtime.executor import TurnExecutor


class AgentBuilder:
    """Creates the agents of a configuration. `history` gives them the earlier messages of a context."""

    def __init__(
        self,
        config: Config,
        *,
        models: Models,
        memories: dict[str, Memory],
        outbox: Outbox,
        history: History,
        resources: Resources,
        problems: Problems,
    ) -> None:
        self._config = config
        self._models = models
        self.memories = memories
        self.outbox = outbox
        self._history = history
        self._resources = resources
        self._problems = problems

    def build(self) -> dict[str, TurnExecutor]:
        """The executors of all agents by name, without those that have problems."""
        built = {
            name: self._executor(name, entry.executor) if entry.executor else self._agent(name, entry)
            for name, entry in self._config.agents.items()
        }
        return {name: executor for name, executor in built.items() if executor is not None}

    def as_executor(self, agent: Agent) -> TurnExecutor:
        """The executor of an agent."""
        self._resources.add(f"memory writes of {agent.name}", agent.settle)
        return A2AExecutor(agent, history=self._history)

    def _agent(self, name: str, entry: AgentConfig) -> TurnExecutor | None:
        before = len(self._problems)
        at = ("agents", name)
        model = self._model(name, entry)
        tools = [
            self._problems.attempt(partial(open_tool, spec), *at, "tools", index)
            for index, spec in enumerate(entry.tools)
        ]
        names = self._config.memories_of(name)
        if len(self._problems) > before or model is None or not self.memories.keys() >= set(names):
            return None
        try:
            agent = Agent(
                model,
                name=name,
                description=entry.description,
                system_prompt=entry.system_prompt,
                memories=[OutboxMemory(memory, self.memories[memory], self.outbox) for memory in names],
                memory_mode=entry.memory_mode,
                memory_timeout=entry.memory_timeout,
                top_k=entry.memory_top_k,
                tools=[tool for tool in tools if tool is not None],
                max_steps=entry.max_steps,
            )
        except ConfigError as error:
            self._problems.add(error, *at, error.key or "tools")
            return None
        return self.as_executor(agent)

    def _model(self, name: str, entry: AgentConfig) -> ChatModel | None:
        assert entry.model is not None  # noqa: S101 - an agent has a model or an executor
        settings = entry.settings.given
        try:
            return self._models.open(entry.model, **settings)
        except ConfigError as error:
            known = {key: ("settings", key) for key in settings} | {"settings": ("settings",)}
            at = known.get(error.key or "", ("model",))
            self._problems.add(error, "agents", name, *at)
            return None

    def _executor(self, name: str, spec: str) -> TurnExecutor | None:
        executor = self._problems.attempt(partial(_import_executor, spec), "agents", name, "executor")
        return turn_executor(executor) if executor is not None else None


def _import_executor(spec: str) -> AgentExecutor:
    found: Any = import_from_string(spec)
    try:
        executor: object = found() if isinstance(found, type) else found
    except Exception as error:
        raise ConfigError(f"{spec!r} cannot be created: {type(error).__name__}: {error}") from error
    if not isinstance(executor, AgentExecutor):
        raise ConfigError(f"{spec!r} is a {type(executor).__name__}, not an a2a-sdk AgentExecutor")
    return executor
