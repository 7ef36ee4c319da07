"""What the managed memories of this package share: bounds, and checks of arguments."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from .text import storable

MAX_PAGE = 1000
"""Records of one page."""
MAX_PROFILE_RECORDS = 20
"""Facts, and preferences, of a profile."""
MAX_FOCUS_RECORDS = 5
"""Latest messages, and summaries, of a profile."""


def check_limit(limit: int) -> None:
    """Raises ValueError if no page can hold so many records."""
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit is {limit}: expected 1 to {MAX_PAGE}")


def checked_text(content: str) -> str:
    """The text of a memory in storable form. Raises ValueError if it is empty."""
    if not content.strip():
        raise ValueError("the text is empty: expected a text; forget() deletes a memory")
    return storable(content)


def check_forget(ids: Sequence[str], query: str | None, since: datetime | None, until: datetime | None) -> None:
    """Raises ValueError if these conditions select everything."""
    if not ids and query is None and since is None and until is None:
        raise ValueError("forget got no condition: expected ids, a query, or a time; erase() deletes everything")
    if query is not None and not query.strip():
        raise ValueError("forget got an empty query, which would match everything; erase() deletes everything")
