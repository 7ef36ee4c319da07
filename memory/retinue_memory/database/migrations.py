"""SQL in files: named statements, and numbered migrations of one component's tables.

A migration is a file `NNN_what_it_does.sql`. The table `schema_version` holds the number of the last one applied, by component.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from functools import partial
from importlib.resources.abc import Traversable

from retinue_memory.errors import StoreError

from .base import Connection, Database

_FILE = re.compile(r"(\d{3})_\w+\.sql")


def named_queries(text: str) -> dict[str, str]:
    """The statements of a `.sql` file by name. Each starts after a line `-- name: the_name`; other comments are kept."""
    parts = re.split(r"^-- name: (\w+)[^\n]*\n", text, flags=re.MULTILINE)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def load_queries(folder: Traversable, file: str) -> dict[str, str]:
    """The named statements of a file that is installed with the package."""
    return named_queries(folder.joinpath(file).read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    script: str


def migrations_of(folder: Traversable) -> list[Migration]:
    """The migrations of a folder, by number."""
    found = [(match[1], entry) for entry in folder.iterdir() if (match := _FILE.fullmatch(entry.name))]
    migrations = [Migration(int(number), entry.read_text(encoding="utf-8")) for number, entry in found]
    return sorted(migrations, key=lambda migration: migration.number)


def current_version(component: str, db: Connection) -> int:
    """The version of a component's tables; 0 if it has none yet."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT"
    )
    row = db.execute("SELECT version FROM schema_version WHERE component = ?", (component,)).fetchone()
    return int(row[0]) if row else 0


def apply(component: str, migration: Migration, db: Connection) -> None:
    """Apply one migration, unless another process has applied it in the meantime."""
    if current_version(component, db) >= migration.number:
        return
    for statement in statements(migration.script):
        db.execute(statement)
    db.execute(
        "INSERT INTO schema_version (component, version) VALUES (?, ?)"
        " ON CONFLICT (component) DO UPDATE SET version = excluded.version",
        (component, migration.number),
    )


def migrate(database: Database, component: str, folder: Traversable, *, name: str) -> int:
    """Apply the migrations that `component` lacks, each in its own commit. Returns its version.

    Raises StoreError if a newer program wrote the tables; `name` names the database in its message.
    """
    migrations = migrations_of(folder)
    newest = migrations[-1].number if migrations else 0
    current = database.write_now(partial(current_version, component))
    if current > newest:
        raise StoreError(
            f"{name} was written by a newer Retinue (version {current} of its {component} tables, this program knows "
            f"{newest}): upgrade Retinue, or configure another database"
        )
    for migration in migrations:
        if migration.number > current:
            database.write_now(partial(apply, component, migration))
    return newest


def statements(script: str) -> list[str]:
    """Split a script into its statements. A trigger's body, which contains semicolons, stays whole."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found
