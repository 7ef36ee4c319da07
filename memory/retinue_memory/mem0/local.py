"""Mem0Local: the mem0 library in this process, on a folder of its own, with our embedder and any of our models."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from retinue_memory.chat import ChatModel, Embedder, EmbedderSource
from retinue_memory.database.base import Database
from retinue_memory.database.file_lock import FileLock
from retinue_memory.errors import MemoryBackendError, ModelError
from retinue_memory.importer import import_chat_model
from retinue_memory.messages import Message

from .importing import check_installed
from .library import Library, held
from .memory import Mem0
from .service import (
    PAGE,
    Added,
    Change,
    Entity,
    Item,
    Service,
    ServiceError,
    history_of,
)

P = ParamSpec("P")
R = TypeVar("R")

_READER_THREADS = 4
_WRITER_THREADS = 8  # most of them wait for the model; one writes at a time
_FACT = {
    "id": {"type": "string"},
    "text": {"type": "string"},
    "attributed_to": {"type": "string", "enum": ["user", "assistant"]},
    "linked_memory_ids": {"type": "array", "items": {"type": "string"}},
}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "memory": {
            "type": "array",
            "items": {"type": "object", "properties": _FACT, "required": list(_FACT), "additionalProperties": False},
        }
    },
    "required": ["memory"],
    "additionalProperties": False,
}
"""The JSON Schema of what mem0's extraction prompt asks for."""


class Mem0Local(Mem0):
    """A memory in the folder `path`, which holds an embedded vector store and mem0's history.

    `model` extracts facts from messages (`infer`) and is closed by the caller; None: messages are kept word for word, as they
    are if the model fails or takes more than `model_timeout` seconds. `embedder` is an embedder or a function that returns
    one; None: the built-in MiniLM. A folder is used by one process at a time, and with one embedder only. The other arguments
    are those of `Mem0`. Raises ConfigError if mem0 is not installed.
    """

    def __init__(
        self,
        path: Path | str = "var/mem0",
        *,
        model: ChatModel | None = None,
        embedder: EmbedderSource = None,
        model_timeout: float = 60.0,
        infer: bool = True,
        space: str = "default",
        name: str = "mem0-local",
        database: Database | str | None = None,
        patience: float = 2.0,
    ) -> None:
        check_installed("mem0-local")
        service = LocalService(Path(path), model, embedder, model_timeout=model_timeout)
        if database is None:  # beside the folder's other files, as the turns in flight belong to them
            database = f"sqlite:///{(Path(path) / 'retinue.db').as_posix()}"
        super().__init__(
            service,
            space=space,
            name=name,
            database=database,
            infer=infer and model is not None,
            patience=patience,
            before_open=service.hold,
        )

    @classmethod
    def from_config(
        cls, entry: Mapping[str, Any], *, name: str, database: Database | None, embedder: EmbedderSource
    ) -> Self:
        """Create the memory of a config entry with the keys of `LocalSettings`. Raises ConfigError."""
        from retinue_memory.settings import check

        from .settings import LocalSettings

        settings = check(LocalSettings, entry)
        arguments: dict[str, Any] = settings.arguments(database)
        arguments["path"] = settings.path or f"var/mem0/{name}"
        if settings.model is not None:
            arguments["model"] = import_chat_model(settings.model)
        return cls(**arguments, embedder=embedder, space=name, name=name)


class LocalService(Service):
    """The library's calls, on threads; the model is called on the memory's event loop."""

    name = "mem0-local"
    elsewhere = "copies of the folder, snapshots and backups; the disk's own spare blocks"
    knows_sessions = True
    grace = 1.0

    def __init__(
        self, folder: Path, model: ChatModel | None, embedder: EmbedderSource, *, model_timeout: float
    ) -> None:
        self._folder = folder
        self._model = model
        self._embedder = embedder
        self._model_timeout = model_timeout
        self._holding, self._opening = threading.Lock(), threading.Lock()
        self._opened_library: Library | None = None
        self._held: FileLock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answering: set[Future[str]] = set()
        self._reading = ThreadPoolExecutor(_READER_THREADS, thread_name_prefix="mem0-read")
        self._writing = ThreadPoolExecutor(_WRITER_THREADS if model else 1, thread_name_prefix="mem0-write")

    async def hold(self) -> None:
        """Lock the folder for this process. Raises ServiceError if another process or memory has it."""
        if self._held is None:
            await self._in_thread(self._reading, self._hold)

    def _hold(self) -> None:
        with self._holding:
            self._held = self._held or held(self._folder)

    async def connect(self) -> None:
        """Import mem0 and load the embedder, which takes seconds."""
        await self.hold()
        await self._run(self._writing, lambda mem0: mem0.memory.embedding_model.embed("ready"))

    async def add(
        self,
        messages: Sequence[Mapping[str, str]],
        entity: Entity,
        *,
        metadata: Mapping[str, Any],
        infer: bool,
        at: datetime,
    ) -> Added:
        known = {**metadata, "created_at": at.isoformat()}
        infer = infer and self._model is not None
        await self._run(self._writing, lambda mem0: mem0.add(messages, entity, known, infer=infer))
        return Added()

    async def search(self, query: str, entity: Entity, *, top_k: int) -> list[Item]:
        return list(map(Item.of, await self._run(self._reading, lambda mem0: mem0.search(query, entity, top_k))))

    async def page(self, entity: Entity, number: int) -> list[Item]:
        rows = await self._run(self._reading, lambda mem0: mem0.listed(entity, limit=number * PAGE))
        return list(map(Item.of, rows[(number - 1) * PAGE :]))

    async def of_turn(self, entity: Entity, turn: str, said: str) -> list[Item] | None:
        return list(map(Item.of, await self._run(self._reading, lambda mem0: mem0.listed(entity, turn=turn))))

    async def get(self, id: str) -> Item | None:
        found = await self._run(self._reading, lambda mem0: mem0.get(id))
        return None if found is None else Item.of(found)

    async def change(self, id: str, *, text: str, metadata: Mapping[str, Any]) -> None:
        await self._run(self._writing, lambda mem0: mem0.change(id, text, metadata))

    async def delete(self, id: str) -> None:
        await self._run(self._writing, lambda mem0: mem0.delete(id))

    async def delete_all(self, entity: Entity) -> None:
        await self._run(self._writing, lambda mem0: mem0.delete_all(entity))

    async def history(self, id: str) -> list[Change]:
        return history_of(await self._run(self._reading, lambda mem0: mem0.history(id)))

    async def remains(self, entity: Entity) -> Mapping[str, int]:
        return await self._run(self._reading, lambda mem0: mem0.beside(entity))

    async def scrub(self) -> str | None:
        return await self._run(self._writing, lambda mem0: mem0.scrub())

    async def aclose(self) -> None:
        with self._opening:
            library = self._opened_library
        if library is not None:
            library.closing()
        for answer in list(self._answering):
            answer.cancel()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        if self._opened_library is not None:
            self._opened_library.close()
        if self._held is not None:
            self._held.release()

    # -- on threads ---------------------------------------------------------------------------------------------------

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[Library], R]) -> R:
        return await self._in_thread(pool, lambda: work(self._opened()))

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[[], R]) -> R:
        self._loop = asyncio.get_running_loop()
        try:
            return await self._loop.run_in_executor(pool, work)
        except ServiceError:
            raise
        except MemoryBackendError as error:
            raise ServiceError(str(error)) from error
        except Exception as error:  # mem0 raises anything; a failed `add` leaves nothing behind, so it was not applied
            raise ServiceError(f"{self.name}: {type(error).__name__}: {error!s:.200}") from error

    def _opened(self) -> Library:
        with self._opening:
            if self._opened_library is None:
                generate = self._answer if self._model is not None else None
                self._opened_library = Library(self._folder, self._found_embedder(), generate)
            return self._opened_library

    def _found_embedder(self) -> Embedder:
        from retinue_memory.native.embedder import find_embedder

        source = self._embedder or find_embedder
        embedder = source if isinstance(source, Embedder) else source()
        if embedder is None:
            problem = (
                "mem0 needs an embedder: pip install 'retinue[local]', and `python -m retinue_agents.models.weights`"
            )
            raise ServiceError(problem)
        return embedder

    # -- the model ----------------------------------------------------------------------------------------------------

    def _answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's answer in mem0's form; on one of our threads. Raises ModelError."""
        assert self._loop is not None  # noqa: S101 - `add` set it
        answering = asyncio.run_coroutine_threadsafe(self._asked(messages), self._loop)
        self._answering.add(answering)
        try:
            return answering.result()
        finally:
            self._answering.discard(answering)

    async def _asked(self, messages: Sequence[Mapping[str, str]]) -> str:
        assert self._model is not None  # noqa: S101 - else the library gets no `generate`
        prompt = [Message("system" if one["role"] == "system" else "user", one["content"]) for one in messages]
        answer = ""
        try:
            async with asyncio.timeout(self._model_timeout):
                async for delta in self._model.stream(prompt, schema=SCHEMA):
                    answer += delta.text
        except TimeoutError:
            raise ModelError(f"{self._model.name} did not answer within {self._model_timeout:g} s") from None
        return facts_of(answer)


def facts_of(answer: str) -> str:
    """The JSON object in a model's answer. Raises ModelError if mem0 cannot use it."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        value: Any = json.loads(answer[start : end + 1], strict=False)
        if not isinstance(value["memory"], list) or not all(isinstance(one["text"], str) for one in value["memory"]):
            raise TypeError("`memory` is not a list of objects with a text")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"the model's answer is malformed: {error}") from None
    return json.dumps(value)
