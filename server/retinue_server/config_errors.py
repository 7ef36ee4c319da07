"""What is wrong with a configuration: every problem with its key, its line and the way out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retinue_memory import settings
from retinue_memory.errors import ConfigError
from retinue_memory.settings import KeyPath

from .yaml_source import Document, Expanded, dotted

T = TypeVar("T")


class InvalidConfig(ConfigError):
    """A configuration is wrong: correct each of `errors`, which stand in the order of the file."""

    def __init__(self, errors: Sequence[ConfigError], path: Path | None = None) -> None:
        self.errors = sorted(errors, key=lambda error: error.line or 0)
        self.path = path
        where = f"{path}: " if path else ""
        super().__init__("\n".join(f"{where}{error}" for error in self.errors))


class Problems:
    """Collects the problems of one configuration file, to report them all at once."""

    def __init__(self, document: Document, path: Path | None = None) -> None:
        self._document = document
        self._path = path
        self._errors = list(document.errors)

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, problem: ConfigError | str, *at: str | int) -> None:
        """Add a problem of the key at this path."""
        error = ConfigError(problem) if isinstance(problem, str) else problem
        error.key, error.line = dotted(at) or None, self._document.line(at)
        self._errors.append(error)

    def add_invalid(
        self, error: ValidationError, model: type[BaseModel], at: KeyPath = (), also: Collection[str] = ()
    ) -> None:
        """Add what pydantic found when it validated the settings at this path; `also` as `settings.problems` takes it.

        A key that has a problem already gets no second one: it was left out of the data because of the first.
        """
        known = {problem.key for problem in self._errors}
        for problem in settings.problems(error, model, lambda below, value: self._shown((*at, *below), value), also):
            path = (*at, *problem.at)
            if dotted(path) not in known:
                value = None if isinstance(self._document.value(path), Expanded) else problem.value
                self.add(ConfigError(problem.text, value=value), *path)

    def attempt(self, build: Callable[[], T], *at: str | int) -> T | None:
        """Call `build`. If it raises ConfigError, add that for the key at this path and return None."""
        try:
            return build()
        except ConfigError as error:
            self.add(error, *at)
            return None

    def raise_any(self) -> None:
        """Raise InvalidConfig if there are problems."""
        if self._errors:
            raise InvalidConfig(self._errors, self._path)

    def _shown(self, at: KeyPath, value: Any) -> str:
        """As `settings.shown`, but with the name of an environment variable instead of its value."""
        written = self._document.value(at)
        if isinstance(written, Expanded):
            return written.source
        text = settings.shown(at, value)
        return f"{text} (YAML reads yes, no, on and off as booleans)" if isinstance(value, bool) else text
