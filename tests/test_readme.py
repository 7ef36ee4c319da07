"""What README and docs show is run: the terminal sessions, the programs, the configurations, the links.

A console block is typed as it stands, against a real server on a free port; a Python or YAML block that begins with
a comment that is a file's name is that file; one that is pyproject.toml is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from retinue_server.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "COLUMNS": "120",
    "NO_COLOR": "1",
    "MEM0_API_KEY": "unused",
    "OPENAI_API_KEY": "unused",
    "PYTHONPATH": "",
}


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if its first line says so."""
        found = re.match(r"# (\w+\.(?:py|yaml|toml))\n", self.text)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page.relative_to(ROOT).as_posix(), match[1], match[2], line))
    return [block for block in found if not languages or block.language in languages]


def write_files(page: str, folder: Path) -> None:
    """The blocks of a page that are files, as files."""
    for block in blocks("python", "yaml", "toml"):
        if block.page == page and block.file == "pyproject.toml":
            install(tomllib.loads(block.text)["project"], folder)
        elif block.page == page and block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def install(project: dict[str, Any], folder: Path) -> None:
    """What an installer leaves behind of a distribution whose modules are in the folder already."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def typed(block: Block) -> list[tuple[list[str], str]]:
    """The commands of a console block, each with what is shown below it."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert not parts[0], f"{block} begins with output"
    return [(shlex.split(command), shown) for command, shown in zip(parts[1::2], parts[2::2], strict=True)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def serving(folder: Path, *options: str) -> Generator[str]:
    """`retinue serve` in a folder, on a free port; its address."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with (folder / "server.log").open("a+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [BIN / "retinue", "serve", *options, "--port", str(port)],
            cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not is_up(url):
                log.seek(0)
                assert process.poll() is None, log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.02)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5):
            return True
    except OSError:
        return False


def run(command: list[str], folder: Path, url: str) -> str:
    """What a command of the terminal prints, told of the test's server by the environment."""
    name, *arguments = command
    assert name == ".venv/bin/retinue"
    done = subprocess.run(
        [BIN / "retinue", *arguments], cwd=folder, env={**ENVIRONMENT, "RETINUE_URL": url},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout


def same(printed: str, shown: str) -> bool:
    """Whether it says the same. The embedded model's words differ a little between processors, so of what it says the names
    count: what starts with a capital within a sentence. Elsewhere a digit may be another one: the time is."""
    if re.match("You|Thank you", shown):
        return set(re.findall(r"(?<=[a-z,] )[A-Z]\w+", shown)) <= set(re.findall(r"\w+", printed))
    return re.sub(r"\d", "0", printed) == re.sub(r"\d", "0", shown)


def readme_consoles() -> tuple[Block, Block]:
    first, second = blocks("console")
    return first, second


def test_the_first_terminal_session(tmp_path: Path) -> None:
    """README's three sends: Alice is remembered from one conversation to the next, and by the next server process; of what
    she said, Bob's agent knows nothing."""
    first, _ = readme_consoles()
    tell, ask, bob = typed(first)
    assert "Italy" in tell[1]
    assert "Rome" in ask[1]
    assert not re.search("Rome|Italy", bob[1])
    with serving(tmp_path) as url:
        assert same(run(tell[0], tmp_path, url), tell[1])
        assert same(run(ask[0], tmp_path, url), ask[1])
        assert not re.search("Rome|Italy", run(bob[0], tmp_path, url))
    with serving(tmp_path) as url:
        assert same(run(ask[0], tmp_path, url), ask[1])


def test_the_second_terminal_session(tmp_path: Path) -> None:
    """README's own model, memory and executor, from its files and its configuration, print what README shows."""
    _, second = readme_consoles()
    write_files("README.md", tmp_path)
    (serve, nothing), *sends = typed(second)
    assert (serve[:2], nothing) == ([".venv/bin/retinue", "serve"], "")
    with serving(tmp_path, *serve[2:]) as url:
        for command, shown in sends:
            printed = run(command, tmp_path, url)
            assert same(printed, shown), printed


@pytest.mark.parametrize("block", [block for block in blocks("python") if not block.file], ids=str)
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    """Every Python block is a whole program that ends without an error; what it says of Alice, it says of Rome."""
    write_files(block.page, tmp_path)
    if "http://127.0.0.1:9000" in block.text:
        with serving(tmp_path) as url:
            run([".venv/bin/retinue", "send", "I am from Italy", "--user", "alice"], tmp_path, url)
            printed = run_program(block.text.replace("http://127.0.0.1:9000", url), tmp_path)
    else:
        printed = run_program(block.text, tmp_path)
    if "capital of my country" in block.text:
        assert "Rome" in printed


def run_program(text: str, folder: Path) -> str:
    (folder / "program.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_configuration_is_right(block: Block, tmp_path: Path) -> None:
    """`retinue check` has nothing to say against any configuration that is shown."""
    write_files(block.page, tmp_path)
    (tmp_path / "shown.yaml").write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [BIN / "retinue", "check", "shown.yaml"],
        cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def keys(model: type[BaseModel], at: str = "") -> Iterator[str]:
    """The dotted keys of a configuration; NAME stands for a name that its author chooses, lists count as one key."""
    for name, field in model.model_fields.items():
        shape: Any = field.annotation
        options: tuple[Any, ...] = (shape, *get_args(shape))
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if sections and Ellipsis not in get_args(shape):
            yield from keys(sections[0], f"{at}{name}.NAME." if str in options else f"{at}{name}.")
        else:
            yield f"{at}{name}"


def test_every_key_is_documented() -> None:
    """The table of docs/guides/config.md has each key of the configuration, and no other."""
    table = (ROOT / "docs/guides/config.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([\w.]+)` \|", table, flags=re.MULTILINE)
    assert sorted(documented) == sorted(keys(Config))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file of the repository."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target
