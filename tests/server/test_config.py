"""What retinue.yaml may say, and what a mistake in it gets: one line that names the key, the line and the way out."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from retinue_memory.registry import BUILT_IN
from retinue_memory.settings import built_in_models
from retinue_server import create_app
from retinue_server.config import (
    Config,
    MemoryConfig,
    default_config,
    load_config,
    parse_config,
)
from retinue_server.config_errors import InvalidConfig

EXPLAINED = Path(__file__).parents[2] / "config" / "retinue.yaml"


def test_the_explained_file_says_what_is_built_in() -> None:
    """config/retinue.yaml is the built-in configuration, key by key."""
    assert load_config(EXPLAINED).model_dump() == default_config().model_dump()


def test_the_explained_file_explains_every_key() -> None:
    """No key of the schema goes without a word in config/retinue.yaml."""
    schema = Config.model_json_schema()
    sections = [
        schema,
        *(section for name, section in schema["$defs"].items() if name.endswith(("Config", "Settings"))),
    ]
    text = EXPLAINED.read_text(encoding="utf-8")
    sections += [condition["then"] for condition in schema["$defs"]["MemoryConfig"]["allOf"]]
    missing = [key for section in sections for key in section.get("properties", {}) if f"{key}:" not in text]
    assert missing == []


def test_an_empty_file_is_the_default() -> None:
    """What a file does not say is as built in."""
    assert parse_config("").model_dump() == default_config().model_dump()


def test_the_schema_is_json() -> None:
    """Editors can be given the schema of the file."""
    schema = json.loads(json.dumps(Config.model_json_schema()))
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False


def test_the_schema_has_the_keys_of_the_built_in_memories() -> None:
    """By backend, with the keys that every memory has; the native one is meant if none is named."""
    conditions = {
        condition["if"]["properties"]["backend"]["const"]: condition
        for condition in Config.model_json_schema()["$defs"]["MemoryConfig"]["allOf"]
    }
    assert conditions.keys() == BUILT_IN.keys()
    assert [name for name, condition in conditions.items() if not condition["if"]["required"]] == ["native"]
    keys = {name: set(condition["then"]["properties"]) for name, condition in conditions.items()}
    assert all(keys[name] >= {"backend", "write_timeout", "write_tries", "database"} for name in keys)
    assert "cache_mb" in keys["native"]
    assert "url" in keys["mem0-server"]
    assert not any(condition["then"]["additionalProperties"] for condition in conditions.values())


def test_every_key_of_a_built_in_memory_is_documented() -> None:
    """The second table of docs/guides/config.md has them by backend, and no other."""
    table = (EXPLAINED.parents[1] / "docs/guides/config.md").read_text(encoding="utf-8")
    documented = {
        (backend, key)
        for backend, keys in re.findall(r"^\| ([\w-]+): ([`\w, ]+) \|", table, flags=re.MULTILINE)
        for key in re.findall(r"`(\w+)`", keys)
    }
    assert documented == {(backend, key) for backend, model in built_in_models().items() for key in model.model_fields}


def test_a_configuration_made_in_code_is_checked_too() -> None:
    """By what builds a server from it, with the same errors, but no lines."""
    config = Config(memory={"default": MemoryConfig.model_validate({"cach_mb": 1, "fade_days": -1})})
    with pytest.raises(InvalidConfig) as raised:
        create_app(config)
    assert str(raised.value).splitlines() == [
        'memory.default.cach_mb: unknown key; did you mean "cache_mb"?',
        "memory.default.fade_days: expected more than 0, got the number -1",
    ]


def test_the_keys_of_any_other_memory_are_its_own() -> None:
    """They are checked when it is created; loading a file imports nothing that it names."""
    config = parse_config("memory: {default: {backend: 'nowhere:Memory', cach_mb: many}}\nagents: {a: {model: echo}}\n")
    assert config.memory["default"].entry == {"backend": "nowhere:Memory", "cach_mb": "many"}


def test_the_environment_fills_in() -> None:
    """${NAME} and ${NAME:-default} are replaced in strings, typed as their place wants it; $${ is a literal ${."""
    config = parse_config(
        textwrap.dedent("""\
        server: {port: "${PORT}", host: "${HOST:-127.0.0.2}"}
        memory:
          default:
            cache_mb: ${CACHE}
        agents:
          helper:
            model: openai/${MODEL:-gpt-5-mini}
            system_prompt: "costs $${PRICE} or $5"
            settings:
              api_key: ${KEY}
              temperature: ${T:-0.5}
              seed: "${PORT}"
              n: ${PORT}
              stop: off
        """),
        environment={"PORT": "8080", "KEY": "0123", "MODEL": "", "CACHE": "64"},
    )
    helper = config.agents["helper"]
    assert (config.server.port, config.server.host) == (8080, "127.0.0.2")
    assert config.memory["default"].entry == {"backend": "native", "cache_mb": 64}
    assert helper.model == "openai/gpt-5-mini"
    assert helper.system_prompt == "costs ${PRICE} or $5"
    assert helper.settings.given == {"api_key": "0123", "temperature": 0.5, "seed": "8080", "stop": False, "n": 8080}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("memory: notes", ("notes",)),
        ("memory: [notes, facts]", ("notes", "facts")),
        ("memory: off", ()),
        ("memory: 'off'", ()),
        ("memory: false", ()),
        ("memory: null", ()),
        ("memory: []", ()),
        ("description: says nothing of it", ("default",)),
    ],
)
def test_the_memory_of_an_agent_is_a_name_a_list_or_off(written: str, meant: tuple[str, ...]) -> None:
    """An agent that says nothing of memory has the one named default."""
    text = f"memory: {{notes: {{}}, facts: {{}}, default: {{}}}}\nagents:\n  a:\n    model: echo\n    {written}\n"
    assert parse_config(text).memories_of("a") == meant


def test_an_agent_without_a_word_on_memory_has_none_where_none_is_named_default() -> None:
    """There is no guessing among memories with other names."""
    assert parse_config("memory: {notes: {}}\nagents: {a: {model: echo}}").memories_of("a") == ()


@pytest.mark.parametrize(
    ("written", "mode", "memories"),
    [
        ("version: '1'", "auto", ("default",)),
        ("memory_mode: tools", "tools", ("default",)),
        ("memory_mode: both", "both", ("default",)),
        ("memory_mode: off", "off", ()),
        ("memory_mode: 'off'", "off", ()),
    ],
)
def test_how_an_agent_uses_its_memory(written: str, mode: str, memories: tuple[str, ...]) -> None:
    """`memory_mode: off` is as `memory: off`, whatever memory is named beside it."""
    config = parse_config(f"agents:\n  a:\n    model: echo\n    {written}\n")
    assert (config.agents["a"].memory_mode, config.memories_of("a")) == (mode, memories)


def test_memory_timeout_and_top_k_of_an_agent() -> None:
    """memory_timeout and memory_top_k are read, and default to 2 s and 5."""
    entry = parse_config("agents: {a: {model: echo, memory_timeout: 0.5, memory_top_k: 20}}").agents["a"]
    assert (entry.memory_timeout, entry.memory_top_k) == (0.5, 20)
    default = parse_config("agents: {a: {model: echo}}").agents["a"]
    assert (default.memory_timeout, default.memory_top_k) == (2, 5)


def test_anchors_and_merge_keys_work() -> None:
    """YAML's own means against repetition are there."""
    config = parse_config(
        "agents:\n  a: &a {default: true, model: echo}\n  b: {<<: *a, default: false, version: '2'}\n"
    )
    assert (config.agents["b"].model, config.agents["b"].version, config.default_agent) == ("echo", "2", "a")


WRONG = {
    "unknown key, near one": ("server:\n  prot: 1\n", ['line 2: server.prot: unknown key; did you mean "port"?']),
    "unknown key, near none": (
        "zzz: 1\n",
        ["line 1: zzz: unknown key; there is: server, database, auth, limits, push, retention, memory, agents"],
    ),
    "unknown key, deep": (
        "agents:\n  a:\n    model: echo\n    skills:\n      - id: x\n        name: X\n        description: x\n        tag: [x]\n",
        ['line 8: agents.a.skills[0].tag: unknown key; did you mean "tags"?'],
    ),
    "several at once, in the order of the file": (
        "agents:\n  a:\n    modle: echo\n    version: 1.0\n    tools: x:y\nserver: {port: 99999, host: 5}\n",
        [
            'line 3: agents.a.modle: unknown key; did you mean "model"?',
            "line 4: agents.a.version: expected text, got the number 1.0: put it in quotes",
            "line 5: agents.a.tools: expected a list, got 'x:y'",
            "line 6: server.host: expected text, got the number 5: put it in quotes",
            "line 6: server.port: expected 65535 or less, got the number 99999",
        ],
    ),
    "a word for a number": ("server: {port: http}\n", ["line 1: server.port: expected a whole number, got 'http'"]),
    "a boolean for a number": (
        "server: {port: yes}\n",
        ["line 1: server.port: expected a number, got true (YAML reads yes, no, on and off as booleans)"],
    ),
    "a list for a section": ("server: [1]\n", ["line 1: server: expected keys and values, got a list"]),
    "nothing for a section": (
        "server:\nagents: {a: {model: echo}}\n",
        ["line 1: server: expected keys and values, got nothing"],
    ),
    "a choice that there is not": ("auth: {mode: jwt}\n", ["line 1: auth.mode: expected none, got 'jwt'"]),
    "no agents": ("agents: {}\n", ["line 1: agents: is empty: at least one is needed"]),
    "no default": (
        "agents:\n  a: {model: echo}\n  b: {model: echo}\n",
        ["line 1: agents: expected one agent with `default: true`, found none"],
    ),
    "two defaults": (
        "agents:\n  a: {model: echo, default: true}\n  b: {model: echo, default: true}\n",
        ["line 3: agents.b.default: expected one default, but a is the default too"],
    ),
    "a name no address can hold": (
        "agents: {My Agent: {model: echo}}\n",
        ["line 1: agents.My Agent: expected a name of lower-case letters, digits, - and _, at most 63 of them"],
    ),
    "neither model nor executor": (
        "agents:\n  a: {description: x}\n",
        ['line 2: agents.a: name a model, like "model: local/smollm2-135m", or an executor'],
    ),
    "model and executor": (
        "agents:\n  a: {model: echo, executor: x:y, tools: []}\n",
        ["line 2: agents.a: an executor replaces the model: remove model, tools, or the executor"],
    ),
    "a memory that there is not": (
        "memory: {notes: {}}\nagents:\n  a:\n    model: echo\n    memory:\n      - notes\n      - note\n",
        ["line 7: agents.a.memory[1]: there is no memory 'note'; did you mean \"notes\"?"],
    ),
    "an unknown key of a built-in memory": (
        "memory:\n  default:\n    cach_mb: 64\n    write_timout: 3\n  team: {backend: mem0-server, url: x, key: y}\n",
        [
            'line 3: memory.default.cach_mb: unknown key; did you mean "cache_mb"?',
            'line 4: memory.default.write_timout: unknown key; did you mean "write_timeout"?',
            'line 5: memory.team.key: unknown key; did you mean "api_key"?',
        ],
    ),
    "wrong values of built-in memories": (
        "server: {port: http}\n"
        "memory:\n  default:\n    cache_mb: many\n    embedder: bert\n    max_memories: 0\n    redact: [emial]\n"
        "  cloud: {backend: mem0, infer: 'no', api_key: 3}\n  own: {backend: mem0-server, timeout: '${SECRET}'}\n"
        "  llm: {mode: llm}\n",
        [
            "line 1: server.port: expected a whole number, got 'http'",
            "line 4: memory.default.cache_mb: expected a number, got 'many'",
            "line 5: memory.default.embedder: expected minilm or off, got 'bert'",
            "line 6: memory.default.max_memories: expected 1 or more, got the number 0",
            'line 7: memory.default.redact: expected secret, card, email, phone, or "regex:..."',
            "line 8: memory.cloud.infer: expected true or false, got 'no'",
            "line 8: memory.cloud.api_key: expected text, got something else: put it in quotes",
            'line 9: memory.own.url: is missing: the address of the server, such as "http://127.0.0.1:8888"',
            "line 9: memory.own.timeout: expected a number, got ${SECRET}",
            'line 10: memory.llm.model: the mode "llm" needs a model: a ChatModel, or the "module:attribute" of one',
        ],
    ),
    "a mode that there is not": (
        "agents:\n  a:\n    model: echo\n    memory_mode: always\n",
        ["line 4: agents.a.memory_mode: expected auto, tools, both or off, got 'always'"],
    ),
    "tools of no memory": (
        "agents:\n  a:\n    model: echo\n    memory: off\n    memory_mode: tools\n",
        ["line 5: agents.a.memory_mode: tools needs a memory: name one as `memory`"],
    ),
    "no time, and too many": (
        "agents:\n  a:\n    model: echo\n    memory_timeout: 0\n    memory_top_k: 101\n",
        [
            "line 4: agents.a.memory_timeout: expected more than 0, got the number 0",
            "line 5: agents.a.memory_top_k: expected 100 or less, got the number 101",
        ],
    ),
    "a mode of an executor's memory": (
        "agents:\n  a: {executor: x:y, memory_mode: both, memory_top_k: 1}\n",
        ["line 2: agents.a: an executor replaces the model: remove memory_mode, memory_top_k, or the executor"],
    ),
    "a database of another kind": (
        "database: mysql://root:hunter2@db/x\n",
        ["line 1: database: expected sqlite:///file.db, or sqlite:////absolute/file.db"],
    ),
    "an address that is none": (
        "server: {public_url: example.com}\n",
        ["line 1: server.public_url: expected an address like https://agents.example.com"],
    ),
    "an unset variable": (
        "agents:\n  a:\n    model: echo\n    settings:\n      api_key: ${NO_SUCH_KEY}\n",
        [
            "line 5: agents.a.settings.api_key: the environment variable NO_SUCH_KEY is not set: "
            "set it, or write ${NO_SUCH_KEY:-default}"
        ],
    ),
    "a variable that is none": (
        "database: 'sqlite:///${1}'\n",
        ["line 1: database: a variable is written ${NAME} or ${NAME:-default}, and a literal ${ as $${"],
    ),
    "a variable of the wrong type": (
        "server: {port: '${SECRET}'}\n",
        ["line 1: server.port: expected a whole number, got ${SECRET}"],
    ),
    "a variable and a key at once": (
        "server:\n  host: ${UNSET}\n  prot: 1\n",
        [
            "line 2: server.host: the environment variable UNSET is not set: set it, or write ${UNSET:-default}",
            'line 3: server.prot: unknown key; did you mean "port"?',
        ],
    ),
    "a key twice": (
        "server:\n  port: 1\n  host: x\n  port: 2\n",
        ["line 4: server.port: duplicate key, first in line 2"],
    ),
    "an agent twice": (
        "agents:\n  a: {model: echo}\n  a: {model: echo}\n",
        ["line 3: agents.a: duplicate key, first in line 2"],
    ),
    "broken YAML": ("server:\n  port: [1\nagents: 2\n", ["line 3: not valid YAML: expected ',' or ']', but got ':'"]),
    "a tab": ("server:\n\tport: 1\n", ["line 2: not valid YAML: found character '\\t' that cannot start any token"]),
    "two documents": (
        "server: {}\n---\nagents: {}\n",
        ["line 2: not valid YAML: expected a single document in the stream but found another document"],
    ),
    "a Python object": (
        "database: !!python/object/apply:os.system [ls]\n",
        ["line 1: database: expected text, got a list"],
    ),
    "a list at the top": ("- server\n", ["line 1: expected keys and values at the top, like `server:` and `agents:`"]),
    "an alias of itself": ("a: &a [*a]\n", ["not valid YAML: it is nested too deeply, or refers to itself"]),
    "a nesting without end": ("a: " + "[" * 5000, ["not valid YAML: it is nested too deeply, or refers to itself"]),
    "a key that is a list": ("? [a, b]\n: c\n", ["line 1: a key must be a word"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_gets_its_line(case: str) -> None:
    """Each mistake is one readable line, in the words of this project."""
    text, lines = WRONG[case]
    with pytest.raises(InvalidConfig) as raised:
        parse_config(text, environment={"SECRET": "hunter2"})
    assert str(raised.value).splitlines() == lines


def test_a_secret_is_never_shown() -> None:
    """A wrong value is shown, but not where it may be a secret."""
    text = "agents:\n  a: {model: echo, settings: {api_key: [hunter2], temperature: hunter3}}\ndatabase: [hunter2]\n"
    with pytest.raises(InvalidConfig) as raised:
        parse_config(text)
    assert "hunter2" not in str(raised.value)
    assert "hunter3" in str(raised.value)
    assert all("hunter2" not in repr(error.value) for error in raised.value.errors)
    config = parse_config("agents: {a: {model: echo, settings: {api_key: hunter2}}}")
    assert "hunter2" not in repr(config)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are no text each say what they are."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"server: \xff\xfe")
    expected = {
        tmp_path / "none.yaml": "cannot be read: No such file or directory",
        tmp_path: "cannot be read: Is a directory",
        binary: "not UTF-8 text (byte 9)",
    }
    for path, problem in expected.items():
        with pytest.raises(InvalidConfig) as raised:
            load_config(path)
        assert str(raised.value) == f"{path}: {problem}"


def test_every_line_names_the_file(tmp_path: Path) -> None:
    """Someone with several files knows which one is meant."""
    path = tmp_path / "mine.yaml"
    path.write_text("a: 1\nb: 2\n", encoding="utf-8")
    with pytest.raises(InvalidConfig) as raised:
        load_config(path)
    assert [line.split(": ")[:3] for line in str(raised.value).splitlines()] == [
        [str(path), "line 1", "a"],
        [str(path), "line 2", "b"],
    ]
