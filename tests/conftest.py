"""What tests of every package share: the real weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from retinue_agents.models.weights import ensure
from retinue_memory.weights import Weight


@pytest.fixture(scope="session")
def weights() -> Mapping[Weight, Path]:
    """The pinned weights, fetched once a machine."""
    return ensure()
