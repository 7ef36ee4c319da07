"""The runtime's tables in one database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from retinue_memory.database.base import Database

from .memory_outbox import MemoryOutboxRows
from .owner_data import OwnerData
from .push import PushRows
from .rows import SQL_FOLDER
from .tasks import Tasks
from .turns import Turns


@dataclass(frozen=True, slots=True)
class Store:
    """The parts of the store. Hand each user the part that it needs."""

    database: Database
    turns: Turns
    tasks: Tasks
    memory_outbox: MemoryOutboxRows
    push: PushRows
    owners: OwnerData

    @classmethod
    def over(cls, database: Database) -> Self:
        return cls(
            database,
            turns=Turns(database),
            tasks=Tasks(database),
            memory_outbox=MemoryOutboxRows(database),
            push=PushRows(database),
            owners=OwnerData(database),
        )

    def migrate(self) -> None:
        """Bring the tables up to date. Blocks; raises StoreError."""
        self.database.migrate("runtime", SQL_FOLDER)
