"""The one tree of errors. A class's docstring is its advice: what the reader of the message can do.

RetinueError
├── ConfigError              a setting is wrong; carries key, value and line
│   ├── ImportFormatError    "module:attr" is not of that form
│   ├── ImportModuleError    there is no such module
│   └── ImportAttributeError the module has no such attribute
├── IdentityError            who is asking, or for whom, is missing or malformed
├── LimitError               a bound was reached; try again later
├── ModelError               the model could not answer
├── ToolError                a tool could not do its work
├── MemoryBackendError       a memory could not be read or written
└── StoreError               the database could not be read or written
    └── LockError            a file lock could not be acquired
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .messages import Message


class RetinueError(Exception):
    """The root: `except RetinueError` catches what this project raises on purpose, and nothing else."""


class ConfigError(RetinueError):
    """A setting is wrong: correct the named key.

    `key` is the dotted path ("agents.helper.model"), `value` what stood there, `line` its 1-based line in the
    file, or None where the setting did not come from a file.
    """

    def __init__(self, problem: str, *, key: str | None = None, value: object = None, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.key = key
        self.value = value
        self.line = line

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        key = f"{self.key}: " if self.key else ""
        return f"{where}{key}{self.problem}"


class ImportFormatError(ConfigError):
    """Write it as "module:attribute", for example "my_package.memory:MyMemory"."""


class ImportModuleError(ConfigError):
    """Install the module, or put it beside the config file, whose folder is on the import path."""


class ImportAttributeError(ConfigError):
    """Name an attribute that the module has."""


class IdentityError(RetinueError):
    """Say for whom: pass a user_id that is a non-empty string or a whole number, or a session_id."""


class LimitError(RetinueError):
    """A bound was reached: try again after `retry_after` seconds (None: not known)."""

    def __init__(self, problem: str, *, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class ModelError(RetinueError):
    """The model could not answer: check its name, key and address; `retryable` says whether trying again may help."""

    def __init__(self, problem: str, *, retryable: bool = False) -> None:
        super().__init__(problem)
        self.retryable = retryable


class ToolError(RetinueError):
    """Raise it in a tool to tell the model, in words, why the call did not work."""


class OutcomeUnknown(RetinueError):
    """A step that may not be repeated was under way when the process stopped: find out what it did before asking again."""


class MemoryBackendError(RetinueError):
    """A memory could not be read or written; the answer goes on without it, or with what it `found` all the same."""

    def __init__(self, problem: str, *, found: Sequence[Message] = ()) -> None:
        super().__init__(problem)
        self.found = found


class StoreError(RetinueError):
    """The database could not be read or written: check its path, its permissions and the disk."""


class LockError(StoreError):
    """A file lock could not be acquired: stop the process that has it (`held`), or make the lock's folder writable."""

    def __init__(self, problem: str, *, held: bool = False) -> None:
        super().__init__(problem)
        self.held = held
