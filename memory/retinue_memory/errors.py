"""The tree of errors. The docstring of a class says what to do about it.

RetinueError
├── ConfigError              a setting is wrong; carries key, value and line
│   ├── ImportFormatError    "module:attr" is not of that form
│   ├── ImportModuleError    there is no such module
│   └── ImportAttributeError the module has no such attribute
├── IdentityError            the user or the session is missing or malformed
├── LimitError               a limit was reached; try again later
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
    """The root: `except RetinueError` catches every error that this project raises itself."""


class ConfigError(RetinueError):
    """A setting is wrong: correct the named key.

    `key` is its dotted path ("agents.helper.model"), `value` its value, and `line` its 1-based line in the file, or None if
    it does not come from a file.
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
    """Install the module, or put it in the folder of the config file, which is on the import path."""


class ImportAttributeError(ConfigError):
    """Name an attribute that the module has."""


class IdentityError(RetinueError):
    """Pass a user_id (a non-empty string or a whole number) or a session_id."""


class LimitError(RetinueError):
    """A limit was reached: try again after `retry_after` seconds. None means that it is not known when."""

    def __init__(self, problem: str, *, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class ModelError(RetinueError):
    """The model could not answer: check its name, key and address; if `retryable`, trying again may help."""

    def __init__(self, problem: str, *, retryable: bool = False) -> None:
        super().__init__(problem)
        self.retryable = retryable


class ToolError(RetinueError):
    """Raise it in a tool: the model gets its text as the result of the call, without the type."""


class OutcomeUnknown(RetinueError):
    """A step that must not be repeated was running when the process stopped: find out what it did before asking again."""


class MemoryBackendError(RetinueError):
    """A memory could not be read or written. The turn continues with the messages that it `found` nevertheless, if any."""

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
