"""Parse a function's docstring: its summary and its parameters' descriptions, in Google or Sphinx style.

A library such as griffe or docstring-parser would be a dependency of the base install for what is one loop here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_GOOGLE_PARAMETERS = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_GOOGLE_SECTION = re.compile(r"^(Returns?|Raises|Yields|Examples?|Notes?|Attributes):\s*$")
_GOOGLE_PARAMETER = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX_PARAMETER = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+):\s*(.*)$")
_SPHINX_FIELD = re.compile(r"^:\w+[^:]*:")


class Docstring(NamedTuple):
    """What a docstring says about a function, without its other sections, and about each of its parameters."""

    summary: str
    parameters: dict[str, str]


def parse_docstring(text: str) -> Docstring:
    """Parse a docstring as `inspect.getdoc` returns it. Unknown sections and fields are dropped."""
    summary: list[str] = []
    parameters: dict[str, list[str]] = {}
    target: list[str] | None = summary
    parameter_indent: int | None = None  # inside a Google section of parameters; -1 before its first one
    for line in text.splitlines():
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if _GOOGLE_PARAMETERS.match(line):
            parameter_indent, target = -1, None
        elif _GOOGLE_SECTION.match(line):
            parameter_indent, target = None, None
        elif match := _SPHINX_PARAMETER.match(stripped):
            target = parameters[match[1]] = [match[2]]
        elif _SPHINX_FIELD.match(stripped):
            target = None
        elif parameter_indent is not None and stripped:
            if indent == 0:  # the section has ended
                parameter_indent, target = None, summary
                summary.append(stripped)
            elif (match := _GOOGLE_PARAMETER.match(stripped)) and parameter_indent in (-1, indent):
                parameter_indent = indent
                target = parameters[match[1]] = [match[2]]
            elif target is not None:
                target.append(stripped)
        elif target is not None:
            target.append(stripped)
    return Docstring("\n".join(summary).strip(), {name: " ".join(lines).strip() for name, lines in parameters.items()})
