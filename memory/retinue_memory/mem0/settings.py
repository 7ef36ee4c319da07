"""The settings of the three forms of mem0 in a config entry."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, StrictBool

from retinue_memory.database.base import Database
from retinue_memory.settings import Address, MemorySettings, Model, Positive, Text


class Mem0Settings(MemorySettings):
    """The keys that all three share. `Mem0` describes what they do."""

    model_config = ConfigDict(extra="forbid")

    database: Address | None = Field(
        default=None, description="Where writes that mem0 has not confirmed are kept; null: in the server's database."
    )
    infer: StrictBool = Field(default=True, description="false: what was said is stored word for word.")
    patience: Positive = Field(default=2.0, description="Seconds that browsing and editing wait for writes in flight.")

    def arguments(self, database: Database | None) -> dict[str, Any]:
        """The arguments of a memory's constructor; `database` is used if the entry names none."""
        return dict(self) | {"database": self.database or database}


class CloudSettings(Mem0Settings):
    """The keys of `mem0`, the cloud."""

    api_key: Text | None = Field(default=None, repr=False, description="The key; null: MEM0_API_KEY.")
    host: Text = Field(default="https://api.mem0.ai", description="The address of the API.")
    timeout: Positive = Field(default=10.0, description="Seconds that one request may take.")
    grace: Positive = Field(
        default=30.0, description="Seconds to look for a write that got no answer before it is sent again."
    )


class ServerSettings(Mem0Settings):
    """The keys of `mem0-server`."""

    url: Text = Field(description='The address of the server, such as "http://127.0.0.1:8888".')
    api_key: Text | None = Field(default=None, repr=False, description="A key of that server; null: none.")
    timeout: Positive = Field(default=10.0, description="Seconds that one request may take.")
    add_timeout: Positive = Field(default=60.0, description="Seconds that adding may take; a model works in it.")
    grace: Positive = Field(
        default=30.0, description="Seconds to look for a write that got no answer before it is sent again."
    )


class LocalSettings(Mem0Settings):
    """The keys of `mem0-local`, the library in this process."""

    path: Text | None = Field(default=None, description="The folder of the memory; null: var/mem0/NAME.")
    model: Model = Field(
        default=None, description="The model that extracts facts; null: what was said is stored word for word."
    )
    model_timeout: Positive = Field(default=60.0, description="Seconds that one call of the model may take.")

    @property
    def uses_embedder(self) -> bool:
        return True

    @property
    def model_name(self) -> str | None:
        return self.model if isinstance(self.model, str) else None
