"""A YAML file as plain data, with the line of every key.

Strings may refer to environment variables: `${NAME}`, or `${NAME:-default}` for a variable that is unset or empty; `$${`
is a literal `${`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from retinue_memory.errors import ConfigError
from retinue_memory.settings import KeyPath

_REFERENCE = re.compile(r"\$(?:(\$\{)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|(?=\{))")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


class Expanded(str):
    """Text with the value of an environment variable in it. It may be a secret: show `source` instead."""

    source: str
    quoted: bool

    def __new__(cls, text: str, *, source: str, quoted: bool) -> Expanded:
        expanded = super().__new__(cls, text)
        expanded.source, expanded.quoted = source, quoted
        return expanded


@dataclass(slots=True)
class Document:
    """The data of a file, the 1-based line of every path in it, and the errors of reading it."""

    data: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])
    errors: list[ConfigError] = field(default_factory=list[ConfigError])

    def line(self, path: KeyPath) -> int | None:
        """The line of `path`, or of its nearest parent in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def value(self, path: KeyPath) -> Any:
        """The value at `path`. Returns None if there is none."""
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value


def dotted(path: KeyPath) -> str:
    """A path as people write it: agents.helper.tools[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def read(text: str, environment: Mapping[str, str] | None = None) -> Document:
    """Read one YAML document, a mapping or nothing. Never raises: see `Document.errors`."""
    document = Document()
    try:
        _Reader(text, document, os.environ if environment is None else environment).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        problem = error.problem or ""
        if not problem or problem.startswith("but "):
            problem = f"{error.context} {problem}"
        document.errors.append(ConfigError(f"not valid YAML: {problem}", line=line))
    except yaml.YAMLError as error:
        document.errors.append(ConfigError(f"not valid YAML: {' '.join(str(error).split())}"))
    except RecursionError:
        document.errors.append(ConfigError("not valid YAML: it is nested too deeply, or refers to itself"))
    return document


class _Reader:
    def __init__(self, text: str, document: Document, environment: Mapping[str, str]) -> None:
        self._loader = yaml.SafeLoader(text)
        self._document = document
        self._environment = environment

    def read(self) -> None:
        node = self._loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            self._document.data = self._mapping(node, ())
        elif node is not None:
            self._refuse("expected keys and values at the top, like `server:` and `agents:`", node, ())

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        if path:
            self._document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value  # a date stays text
        try:
            value: object = self._loader.construct_object(node)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        except ValueError:
            self._refuse(f"cannot be read as {node.tag.rpartition(':')[2]}: put it in quotes", node, path)
            return None
        return self._expand(node, value, path) if isinstance(value, str) else value  # pyright: ignore[reportUnknownVariableType]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key must be a word", key, path)
            elif key.value in first and key.value != "<<":
                self._refuse(f"duplicate key, first in line {first[key.value]}", key, (*path, key.value))
            else:
                first[key.value] = key.start_mark.line + 1
        self._loader.flatten_mapping(node)
        found: dict[str, Any] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                here = (*path, key.value)
                self._document.lines[here] = key.start_mark.line + 1
                found[key.value] = self._value(value, here)
        return found

    def _expand(self, node: yaml.Node, text: str, path: KeyPath) -> Any:
        if "${" not in text:
            return text

        def replace(found: re.Match[str]) -> str:
            escaped, name, default = found.groups()
            if escaped:
                return "${"
            if name is None:
                self._refuse("a variable is written ${NAME} or ${NAME:-default}, and a literal ${ as $${", node, path)
                return ""
            value = self._environment.get(name)
            if default is not None:
                return value or default
            if value is None:
                problem = f"the environment variable {name} is not set: set it, or write ${{{name}:-default}}"
                self._refuse(problem, node, path)
            return value or ""

        return Expanded(_REFERENCE.sub(replace, text), source=text, quoted=getattr(node, "style", None) is not None)

    def _refuse(self, problem: str, node: yaml.Node, path: KeyPath) -> None:
        line = node.start_mark.line + 1
        self._document.errors.append(ConfigError(problem, key=dotted(path) or None, line=line))


def untyped(value: Any) -> Any:
    """`value` without `Expanded`, for keys whose types are unknown: an unquoted 8 from the environment becomes a number."""
    if isinstance(value, dict):
        return {key: untyped(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [untyped(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, Expanded):
        return value
    if value.quoted:
        return str(value)
    if value in ("true", "false"):
        return value == "true"
    number = _NUMBER.fullmatch(value)
    if number is None:
        return str(value)
    return float(value) if number[2] else int(value)
