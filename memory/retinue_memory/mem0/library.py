"""mem0's `Memory` on a folder of its own: with our embedder and model, without a network, usable from any thread.

Adds what the library lacks: a lock around its vector store, and the deletion of deleted texts from its history, its table of
last messages and its files. Everything blocks: call it from worker threads.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import logging
import threading
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from retinue_memory.chat import Embedder
from retinue_memory.database.base import Connection
from retinue_memory.database.file_lock import FileLock
from retinue_memory.database.foreign import vacuum, zero_deleted
from retinue_memory.errors import LockError, MemoryBackendError, StoreError

from .importing import import_mem0
from .service import TURN, Entity

log = logging.getLogger(__name__)

Generate = Callable[[Sequence[Mapping[str, str]]], str]
"""Answers messages of {"role", "content"} with a JSON object as text. Blocks; what it raises ends the `add`."""

_PROVIDER = "retinue"
_COLLECTION = "memories"
_ALL = 2**31 - 1
_ADDING = "adding"
_EMBEDDER = "embedder.json"  # names the embedder of a folder's vectors: those of another cannot be compared with them


class Embedding:
    """An embedding model in mem0's interface; `config.model` is our `Embedder`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return self.embed_batch([text])[0]

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = None) -> list[list[float]]:
        vectors: list[list[float]] = self.config.model.embed(list(texts)).tolist() if texts else []
        return vectors


class Llm:
    """A language model in mem0's interface; `config.model` is a `Generate`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def generate_response(self, messages: Sequence[Mapping[str, str]], *_: Any, **__: Any) -> str:
        answer: str = self.config.model(messages)
        return answer


class Library:
    """The memories of one folder, which the caller has locked (see `held`). `generate` is needed to `infer`.

    Raises MemoryBackendError if the folder has vectors of another embedder, or is damaged.
    """

    def __init__(self, folder: Path, embedder: Embedder, generate: Generate | None = None) -> None:
        self.folder = folder
        self._generate = generate
        self._qdrant = threading.Lock()
        self._writing = threading.Lock()
        """Held while writing, but not while a model answers."""
        self._inferring = threading.local()
        self._erasures: dict[Entity, int] = {}
        self._closing = False
        mem0 = import_mem0(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            _check_embedder(folder, embedder)
            try:
                self.memory = self._open(mem0, embedder)
                opened.callback(self.memory.close)
                opened.callback(self._client.close)
                zero_deleted(self.connections())
                self._undo()
                self._sweep()
            except Exception as error:
                problem = (
                    f"{folder} cannot be opened ({type(error).__name__}: {error}): repair it, or name another path"
                )
                raise MemoryBackendError(problem) from error
            self._opened = opened.pop_all()

    def _open(self, mem0: Any, embedder: Embedder) -> Any:
        factory: Any = importlib.import_module("mem0.utils.factory")
        config: Any = importlib.import_module("mem0.configs.base")
        embeddings: Any = importlib.import_module("mem0.embeddings.configs")
        llms: Any = importlib.import_module("mem0.llms.configs")
        persistence: Any = importlib.import_module("qdrant_client.local.persistence")
        persistence.CollectionPersistence.CHECK_SAME_THREAD = False  # our lock does what it checks for
        factory.EmbedderFactory.provider_to_class[_PROVIDER] = f"{__name__}.Embedding"
        factory.LlmFactory.register_provider(_PROVIDER, f"{__name__}.Llm")
        _stay_offline()
        store = {"path": str(self.folder / "qdrant"), "collection_name": _COLLECTION, "on_disk": True}
        settings = config.MemoryConfig(
            vector_store={"provider": "qdrant", "config": {**store, "embedding_model_dims": embedder.dimensions}},
            history_db_path=str(self.folder / "history.db"),
            # created without validation, which knows mem0's own providers only
            embedder=embeddings.EmbedderConfig.model_construct(
                provider=_PROVIDER, config={"model": embedder, "embedding_dims": embedder.dimensions}
            ),
            llm=llms.LlmConfig.model_construct(provider=_PROVIDER, config={"model": self._answer}),
        )
        memory = mem0.Memory(settings)
        memory.vector_store._has_bm25_slot = False  # its encoder would be downloaded
        self._client = memory.vector_store.client
        memory.vector_store.client = _Locked(self._client, self._qdrant)
        return memory

    def closing(self) -> None:
        """From now on, an `add` whose model does not answer raises and keeps nothing."""
        self._closing = True

    def close(self) -> None:
        """Wait for writes in progress, then close the files."""
        with self._writing, self._qdrant:
            self._opened.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def search(self, query: str, entity: Entity, top_k: int) -> list[dict[str, Any]]:
        found: dict[str, list[dict[str, Any]]] = self.memory.search(
            query, filters=entity.filter, top_k=top_k, threshold=0.0, show_expired=True
        )
        return found["results"]

    def listed(self, entity: Entity, *, limit: int = _ALL, turn: str | None = None) -> list[dict[str, Any]]:
        """The entity's memories, ordered by id; those of one turn if it is given."""
        filters = entity.filter if turn is None else {**entity.filter, TURN: {"eq": turn}}
        found: dict[str, list[dict[str, Any]]] = self.memory.get_all(filters=filters, top_k=limit, show_expired=True)
        return found["results"]

    def get(self, id: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.memory.get(id)
        return found

    def history(self, id: str) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self.memory.history(id)
        return steps

    def beside(self, entity: Entity) -> dict[str, int]:
        """Rows of the entity beside its memories, by table, without zeros."""
        ids = json.dumps(self._ids(entity))
        scope = _session_scope(entity)
        counted = {
            "history": self._count("history WHERE memory_id IN (SELECT value FROM json_each(?))", ids),
            "messages": self._count("messages WHERE session_scope = ?", scope),
        }
        with self._qdrant:
            for name, collection in self._client._client.collections.items():
                if name != _COLLECTION:
                    counted[name] = collection.count(_only(entity)).count
        return {table: count for table, count in counted.items() if count}

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(
        self, messages: Sequence[Mapping[str, str]], entity: Entity, metadata: Mapping[str, Any], *, infer: bool
    ) -> None:
        """Store what the model infers from the messages, or the messages if it gives no valid answer.

        Nothing is stored if the entity was erased since this started.
        """
        with self._all_or_none(entity, metadata.get(TURN)), self._writing:
            erasures = self._erasures.get(entity, 0)
            kept = functools.partial(self.memory.add, list(messages), metadata=dict(metadata), **entity.filter)
            if infer:
                self._inferring.wanted = lambda: self._erasures.get(entity, 0) == erasures
                try:
                    kept(infer=True)
                    return
                except Exception as error:
                    if self._erasures.get(entity, 0) != erasures:
                        log.info("mem0: dropped a turn, its scope was erased meanwhile")
                        return
                    if self._closing:
                        raise MemoryBackendError("mem0: the memory was closed while its model answered") from error
                    log.warning("mem0: the model inferred nothing, storing the messages as they are: %s", error)
                finally:
                    self._inferring.wanted = _always
            kept(infer=False)

    @contextmanager
    def _all_or_none(self, entity: Entity, turn: object) -> Generator[None]:
        """Delete a turn's memories, which mem0 writes one by one, if not all of them are written.

        A file names the turn until they are, in case the process dies.
        """
        note = self.folder / _ADDING / f"{uuid.uuid4().hex}.json"
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps([entity.field, entity.id, turn]), encoding="utf-8")
        try:
            yield
        except BaseException:
            self._take_back(entity, turn)
            raise
        finally:
            note.unlink()

    def _take_back(self, entity: Entity, turn: object) -> None:
        if isinstance(turn, str):
            self.memory.vector_store.client.delete(_COLLECTION, points_selector=_selected(entity, turn))

    def _undo(self) -> None:
        """Delete what a process that died had half written."""
        for note in (self.folder / _ADDING).glob("*.json"):
            try:
                field, id, turn = json.loads(note.read_text(encoding="utf-8"))
            except ValueError:  # it died before it wrote the file
                pass
            else:
                self._take_back(Entity(field, id), turn)
            note.unlink()

    def _answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The model's answer; others may write meanwhile."""
        if self._generate is None:
            raise MemoryBackendError("mem0 was asked to infer, but there is no model")
        self._writing.release()
        try:
            answer = self._generate(messages)
        finally:
            self._writing.acquire()
        if not getattr(self._inferring, "wanted", _always)():
            raise MemoryBackendError("the scope was erased meanwhile")
        return answer

    def change(self, id: str, text: str, metadata: Mapping[str, Any]) -> None:
        with self._writing:
            self.memory.update(id, text=text, metadata=dict(metadata))

    def delete(self, id: str) -> None:
        """Delete a memory with its history and its owner's last messages, from which it may have been inferred."""
        with self._writing:
            found = self.memory.get(id)
            if found is None:
                return
            self.memory.delete(id)
            owner = {key: found[key] for key in ("user_id", "run_id", "agent_id") if found.get(key)}
            self._forget(json.dumps([id]), _scope_of(owner))
            self._blank()

    def delete_all(self, entity: Entity) -> None:
        """Delete memories, entities, history and last messages, from the tables and from memory."""
        with self._writing:
            self._erasures[entity] = self._erasures.get(entity, 0) + 1
            self._forget(json.dumps(self._ids(entity)), _session_scope(entity))
            for name in list(self._client._client.collections):
                self.memory.vector_store.client.delete(name, points_selector=_selected(entity))
            self._blank()

    # -- the files ----------------------------------------------------------------------------------------------------

    def _ids(self, entity: Entity) -> list[str]:
        with self._qdrant:
            points, _ = self._client.scroll(
                _COLLECTION, scroll_filter=_only(entity), limit=_ALL, with_payload=False, with_vectors=False
            )
        return [str(point.id) for point in points]

    def _count(self, what: str, *values: str) -> int:
        with self._history_lock() as db:
            count: int = db.execute(f"SELECT count(*) FROM {what}", values).fetchone()[0]  # noqa: S608 - ours
            return count

    def _forget(self, ids: str, session_scope: str) -> None:
        """Delete the history of these memories, and a scope's last messages."""
        with self._history_lock() as db, db:
            db.execute("DELETE FROM history WHERE memory_id IN (SELECT value FROM json_each(?))", [ids])
            db.execute("DELETE FROM messages WHERE session_scope = ?", [session_scope])

    def _sweep(self) -> None:
        """Delete the history of memories that are gone: the process died between the two deletions."""
        with self._qdrant:
            known = json.dumps([str(id) for id in self._client._client.collections[_COLLECTION].ids])
        with self._history_lock() as db, db:
            db.execute("DELETE FROM history WHERE memory_id NOT IN (SELECT value FROM json_each(?))", [known])

    def _blank(self) -> None:
        """Drop the deleted texts that the vector store only marks as deleted in memory."""
        with self._qdrant:
            for collection in self._client._client.collections.values():
                for place in collection.deleted.nonzero()[0]:
                    if collection.payload[place]:
                        collection.payload[place] = {}
                        for vectors in collection.vectors.values():
                            vectors[place] = 0.0

    def scrub(self) -> str | None:
        """Rewrite the files without deleted rows, which takes as much disk again. Returns what failed, in words, or None."""
        try:
            with self._writing, self._history_lock(), self._qdrant:
                vacuum(self.connections())
        except StoreError as error:
            return f"unused space in files of {self.folder} ({error}): make room on the disk, and erase again"
        return None

    @contextmanager
    def _history_lock(self) -> Generator[Any]:
        with self.memory.db._lock:
            yield self.memory.db.connection

    def connections(self) -> list[Connection]:
        """Those of the files with memories and history."""
        return [self.memory.db.connection] + [one.storage.storage for one in self._client._client.collections.values()]


def _always() -> bool:
    return True


class _Locked:
    """The vector store's client, one call at a time: it has no lock and loses points without one."""

    def __init__(self, client: Any, lock: threading.Lock) -> None:
        self._client = client
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return found(*args, **kwargs)

        return call


def _only(entity: Entity) -> Any:
    """The filter of an entity's points; a session's are those that name no user."""
    models: Any = importlib.import_module("qdrant_client.models")
    must = [models.FieldCondition(key=entity.field, match=models.MatchValue(value=entity.id))]
    if entity.field == "run_id":
        must.append(models.IsEmptyCondition(is_empty=models.PayloadField(key="user_id")))
    return models.Filter(must=must)


def _selected(entity: Entity, turn: str | None = None) -> Any:
    models: Any = importlib.import_module("qdrant_client.models")
    chosen = _only(entity)
    if turn is not None:
        chosen.must.append(models.FieldCondition(key=TURN, match=models.MatchValue(value=turn)))
    return models.FilterSelector(filter=chosen)


def _session_scope(entity: Entity) -> str:
    return _scope_of(entity.filter)


def _scope_of(ids: Mapping[str, str]) -> str:
    """mem0's key of the last messages."""
    main: Any = importlib.import_module("mem0.memory.main")
    scope: str = main._build_session_scope(ids)
    return scope


def held(folder: Path) -> FileLock:
    """Acquire the lock of a folder, which is created if it is missing. Raises MemoryBackendError if another has it."""
    lock = FileLock(folder / "retinue.lock")
    try:
        lock.acquire()
    except LockError as error:
        if error.held:
            problem = f"{folder} is in use by another process or memory: stop that one, or name another path"
            raise MemoryBackendError(problem) from None
        problem = f"{folder} cannot be locked ({error}): make it a folder that can be written"
        raise MemoryBackendError(problem) from error
    return lock


def _check_embedder(folder: Path, embedder: Embedder) -> None:
    path = folder / _EMBEDDER
    mine = {"name": embedder.name, "dimensions": embedder.dimensions}
    if not path.exists():
        half = path.with_suffix(".half")
        half.write_text(json.dumps(mine), encoding="utf-8")
        half.replace(path)
        return
    made = json.loads(path.read_text(encoding="utf-8"))
    if made != mine:
        problem = f"{folder} was made with the embedder {made.get('name')!r}, not {embedder.name!r}: use that, or another path"
        raise MemoryBackendError(problem)


def _stay_offline() -> None:
    """Keep mem0 from downloading a language model for a spaCy that is installed without one."""
    if importlib.util.find_spec("spacy") is None or importlib.util.find_spec("en_core_web_sm") is None:
        spacy: Any = importlib.import_module("mem0.utils.spacy_models")
        spacy._load_failed_full = spacy._load_failed_lemma = True
