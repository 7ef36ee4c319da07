"""From a config entry to a memory, and every way in which that can be wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recollect_memory import Memory, Message, open_memory
from recollect_memory.errors import ConfigError, ImportAttributeError, ImportFormatError, ImportModuleError
from recollect_memory.registry import import_from_string
from recollect_memory.sqlite import Database
from recollect_memory.testing import HashEmbedder, turn_of

FOREIGN = """
from recollect_memory import Memory, MemoryBackend, Message

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


async def test_callbacks_are_a_memory_too(folder: Path) -> None:
    """A MemoryBackend comes back as a Memory."""
    memory = open_memory("foreign:Callbacks")
    assert isinstance(memory, Memory)
    assert await memory.retrieve("tea", ctx=turn_of()) == []


@pytest.mark.parametrize(
    ("entry", "key", "said"),
    [
        ("nativ", "backend", 'did you mean "native"'),
        ("zebra", "backend", "known: .*native"),
        ({"backend": 3}, "backend", "is a name"),
        ({"backend": "foreign:number"}, "backend", "is a int, not a Memory"),
        ({"backend": "foreign:nothing"}, "backend", "no attribute"),
        ({"backend": "foreign:Mine", "prefx": "x"}, "prefx", "prefx"),
        ({"backend": "foreign:ready", "prefix": "x"}, "prefix", "takes no settings"),
        ({"backend": "foreign:Mine", "fail": True}, "backend", "OSError: no such server"),
        ({"backend": "native", "databse": "x"}, "databse", 'did you mean "database"'),
        ({"backend": "native", "database": "x.db"}, "database", "sqlite:///"),
        ({"backend": "native", "database": 5}, "database", "sqlite:///"),
        ({"backend": "native", "embedder": "bert"}, "embedder", "minilm"),
        ({"backend": "native", "cache_mb": 0}, "cache_mb", "above 0"),
        ({"backend": "native", "cache_mb": True}, "cache_mb", "above 0"),
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

    shared = Database(tmp_path / "shared.db")
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
    database = Database(tmp_path / "x.db")
    memory = open_memory({"backend": "native"}, database=database)
    await memory.update([Message("user", "I juggle")], ctx=turn_of())
    assert await database.read(lambda db: db.execute("SELECT dimensions FROM memories").fetchall()) == [(384,)]
    await memory.aclose()
    await database.aclose()
