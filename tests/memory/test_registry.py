"""From a config entry to a memory, and every way in which that can be wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retinue_memory import Memory, Message, open_memory
from retinue_memory.database.sqlite import SQLiteDatabase
from retinue_memory.errors import (
    ConfigError,
    ImportAttributeError,
    ImportFormatError,
    ImportModuleError,
)
from retinue_memory.importer import import_from_string
from retinue_memory.native.memory import NativeMemory
from retinue_memory.registry import (
    BUILT_IN,
    Backend,
    FromConfig,
    backends,
    shadows,
)
from retinue_memory.testing import HashEmbedder, turn_of

FOREIGN = """
from pydantic import BaseModel, Field
from retinue_memory import Memory, MemoryBackend, Message

class Mine(Memory):
    def __init__(self, prefix="", fail=False):
        if fail:
            raise OSError("no such server")
        self.prefix = prefix
    async def retrieve(self, query, *, top_k=5, **kwargs):
        return [Message("system", self.prefix + query)]
    async def update(self, messages, **kwargs):
        pass

class Callbacks(MemoryBackend):
    name = "callbacks"
    def record(self, session_id, user_msg, assistant_msg): ...
    async def recall(self, session_id, query, max_entries): ...
    def flush(self, session_id): ...

def make():
    return Mine("made ")

class Box:
    inside = Mine("boxed ")

class Told(Mine):
    @classmethod
    def from_config(cls, entry, *, name, database, embedder):
        if entry.get("broken"):
            raise OSError("no such server")
        return cls(f"{sorted(entry)} {name} {database} {embedder} ")

class Validated(Mine):
    class Settings(BaseModel, extra="forbid"):
        prefix: str = Field(min_length=3)

class ToldValidated(Told):
    class Settings(BaseModel):
        loud: bool = False

class Confused(Mine):
    @classmethod
    def from_config(cls, entry):
        return cls()

ready = Mine("ready ")
number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path, as a config file's is."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    (tmp_path / "foreign.py").write_text(FOREIGN, encoding="utf-8")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"foreign", "needy", "broken", "package"}:
            del sys.modules[name]


@pytest.mark.parametrize(
    "spec", ["", "foreign", "foreign:", ":make", "foreign:make:x", "for eign:make", "a..b:c", "a:b."]
)
def test_bad_format(spec: str) -> None:
    """Not "module:attribute"."""
    with pytest.raises(ImportFormatError, match="module:attribute"):
        import_from_string(spec)


@pytest.mark.parametrize(
    ("spec", "missing"), [("nowhere:x", "nowhere"), ("nowhere.sub:x", "nowhere"), ("foreign.sub:x", "foreign.sub")]
)
def test_no_such_module(folder: Path, spec: str, missing: str) -> None:
    """The very module that was named is missing."""
    with pytest.raises(ImportModuleError, match=f"no module '{missing}'"):
        import_from_string(spec)


def test_a_module_that_misses_another_is_not_missing_itself(folder: Path) -> None:
    """An import that fails inside the module is told with its cause, not as a missing module."""
    (folder / "needy.py").write_text("import surely_not_installed\n", encoding="utf-8")
    (folder / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    for spec, cause in (("needy:x", "surely_not_installed"), ("broken:x", "ZeroDivisionError")):
        with pytest.raises(ConfigError, match=cause) as caught:
            import_from_string(spec)
        assert type(caught.value) is ConfigError
        assert caught.value.__cause__ is not None


def test_no_such_attribute(folder: Path) -> None:
    """The module has no such attribute; the nearest is named."""
    with pytest.raises(ImportAttributeError, match=r"no attribute 'reddy'; did you mean \"ready\"\?"):
        import_from_string("foreign:reddy")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("foreign:Mine", "tea"),
        ("foreign:make", "made tea"),
        ("foreign:ready", "ready tea"),
        ("foreign:Box.inside", "boxed tea"),
        ({"backend": "foreign:Mine", "prefix": "set "}, "set tea"),
    ],
)
async def test_a_memory_of_your_own(folder: Path, entry: str | dict[str, str], expected: str) -> None:
    """A class, a function or an instance, named as module:attr; a class gets the entry's other keys."""
    memory = open_memory(entry)
    assert [hit.content for hit in await memory.retrieve("tea", ctx=turn_of())] == [expected]


async def test_a_class_may_ask_for_more_than_its_keys(folder: Path) -> None:
    """`from_config` gets the entry without `backend`, the memory's name, the shared database and the embedder: what the
    native memory gets."""
    memory = open_memory({"backend": "foreign:Told", "b": 1, "a": 2}, name="team")
    assert [hit.content for hit in await memory.retrieve("tea", ctx=turn_of())] == ["['a', 'b'] team None None tea"]


async def test_a_class_may_bring_a_model_of_its_keys(folder: Path) -> None:
    """A pydantic model as `Settings` validates them first, and its values are what the class is called with."""
    memory = open_memory({"backend": "foreign:Validated", "prefix": "set "})
    assert [hit.content for hit in await memory.retrieve("tea", ctx=turn_of())] == ["set tea"]
    memory = open_memory({"backend": "foreign:ToldValidated"}, name="team")
    assert [hit.content for hit in await memory.retrieve("tea", ctx=turn_of())] == ["['loud'] team None None tea"]


def test_the_built_in_ones_are_made_the_same_way() -> None:
    """By the same importer, with the same hook as anybody's."""
    hook: FromConfig = NativeMemory  # the type checker holds it to that too
    assert callable(hook.from_config)
    for target in BUILT_IN.values():
        assert callable(import_from_string(target).from_config)


def install(folder: Path, distribution: str, points: str) -> None:
    """A distribution that offers these entry points of memories, as an installer leaves it behind."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[retinue.memory]\n{points}\n", encoding="utf-8")


async def test_an_installed_distribution_offers_a_memory_by_name(folder: Path) -> None:
    """An entry point of the group retinue.memory is a short name like the built-in ones; extras in it are nothing to us."""
    install(folder, "tea-memory", "tea = foreign:Mine\nmilk = foreign:ready [extra]")
    memory = open_memory({"backend": "tea", "prefix": "green "})
    assert [hit.content for hit in await memory.retrieve("tea", ctx=turn_of())] == ["green tea"]
    assert isinstance(open_memory("milk"), Memory)
    assert backends()["tea"] == Backend("tea", "foreign:Mine", "tea-memory")
    assert list(backends())[: len(BUILT_IN)] == list(BUILT_IN)


def test_what_is_known_is_told_with_the_nearest(folder: Path) -> None:
    """An unknown name is refused with all that there are, offered ones included."""
    install(folder, "tea-memory", "tea-leaves = foreign:Mine")
    known = 'did you mean "tea-leaves".*known: native, mem0, mem0-server, mem0-local, tea-leaves, or "module:attr'
    with pytest.raises(ConfigError, match=known):
        open_memory("tea-leafs")


def test_two_distributions_of_one_name_are_refused(folder: Path) -> None:
    """Neither is chosen in silence, whatever the order of the path; other names are not concerned."""
    install(folder, "tea-memory", "tea = foreign:Mine")
    install(folder, "other-tea", "tea = foreign:make\nmilk = foreign:ready")
    with pytest.raises(
        ConfigError, match=r"offer a memory 'tea': other-tea \(foreign:make\) and tea-memory \(foreign:Mine"
    ):
        open_memory("tea")
    with pytest.raises(ConfigError, match="several distributions"):
        backends()
    assert isinstance(open_memory("milk"), Memory)


def test_a_built_in_name_stays_built_in(folder: Path) -> None:
    """Whoever offers `native` too is not asked, and can be seen."""
    install(folder, "sly", "native = foreign:Mine")
    assert type(open_memory("native")).__name__ == "NativeMemory"
    assert backends()["native"].distribution is None
    assert shadows() == [Backend("native", "foreign:Mine", "sly")]


@pytest.mark.parametrize(
    ("target", "said"), [("foreign:gone", "no attribute"), ("nowhere:x", "no module"), ("foreign", "not of the form")]
)
def test_a_broken_offer_names_its_distribution(folder: Path, target: str, said: str) -> None:
    """So that it is known what to uninstall or update."""
    install(folder, "tea-memory", f"tea = {target}")
    with pytest.raises(ConfigError, match=f"{said}.*the memory 'tea' of the distribution tea-memory"):
        open_memory("tea")


async def test_callbacks_are_a_memory_too(folder: Path) -> None:
    """A MemoryBackend comes back as a Memory."""
    memory = open_memory("foreign:Callbacks")
    assert isinstance(memory, Memory)
    assert await memory.retrieve("tea", ctx=turn_of()) == []


@pytest.mark.parametrize(
    ("entry", "key", "said"),
    [
        ("nativ", "backend", 'did you mean "native"'),
        ("zebra", "backend", "known: native, mem0, mem0-server, mem0-local, or"),
        ({"backend": 3}, "backend", "is a name"),
        ({"backend": "foreign:number"}, "backend", "is a int, not a Memory"),
        ({"backend": "foreign:nothing"}, "backend", "no attribute"),
        ({"backend": "foreign:Mine", "prefx": "x"}, "prefx", "prefx"),
        ({"backend": "foreign:ready", "prefix": "x"}, "prefix", "takes no settings"),
        ({"backend": "foreign:Validated"}, "prefix", "is missing"),
        ({"backend": "foreign:Validated", "prefx": "long"}, "prefx", 'did you mean "prefix"'),
        ({"backend": "foreign:Validated", "prefix": 3}, "prefix", "expected text, got the number 3"),
        ({"backend": "foreign:ToldValidated", "loud": "very"}, "loud", "true or false"),
        ({"backend": "foreign:Mine", "fail": True}, "backend", "OSError: no such server"),
        ({"backend": "foreign:Told", "broken": True}, "backend", "OSError: no such server"),
        ({"backend": "foreign:Confused", "x": True}, "backend", "cannot be created from these settings"),
        ({"backend": "native", "databse": "x"}, "databse", 'did you mean "database"'),
        ({"backend": "native", "database": "x.db"}, "database", "sqlite:///"),
        ({"backend": "native", "database": 5}, "database", "sqlite:///"),
        ({"backend": "native", "embedder": "bert"}, "embedder", "minilm"),
        ({"backend": "native", "cache_mb": 0}, "cache_mb", "more than 0"),
        ({"backend": "native", "cache_mb": True}, "cache_mb", "expected a number"),
    ],
)
def test_wrong_entries_name_the_key_and_the_way_out(
    folder: Path, entry: str | dict[str, object], key: str, said: str
) -> None:
    """One ConfigError each, whose key is relative to the entry."""
    with pytest.raises(ConfigError, match=said) as caught:
        open_memory(entry)
    assert caught.value.key == key


async def test_the_database_of_the_entry_or_the_shared_one(tmp_path: Path) -> None:
    """The native memory opens what its entry names and closes it; a shared database is used and left open."""
    own = open_memory({"backend": "native", "database": f"sqlite:///{tmp_path}/own.db", "embedder": False})
    assert not (tmp_path / "own.db").exists()  # nothing is opened before the first use
    await own.update([Message("user", "I juggle")], ctx=turn_of())
    assert (tmp_path / "own.db").exists()
    await own.aclose()

    shared = SQLiteDatabase(tmp_path / "shared.db")
    memory = open_memory("native", name="team", database=shared, embedder=HashEmbedder())
    assert memory.name == "team"
    await memory.update([Message("user", "I juggle")], ctx=turn_of())
    await memory.aclose()
    await memory.aclose()
    rows = await shared.read(lambda db: db.execute("SELECT space, embedder, dimensions FROM memories").fetchall())
    assert rows == [("team", "hash-64", 64)]
    await shared.aclose()


async def test_the_packaged_embedder_is_used_where_it_is_installed(tmp_path: Path, minilm: object) -> None:
    """A plain library call remembers with vectors when the weights are on this machine."""
    database = SQLiteDatabase(tmp_path / "x.db")
    memory = open_memory({"backend": "native"}, database=database)
    await memory.update([Message("user", "I juggle")], ctx=turn_of())
    assert await database.read(lambda db: db.execute("SELECT dimensions FROM memories").fetchall()) == [(384,)]
    await memory.aclose()
    await database.aclose()
