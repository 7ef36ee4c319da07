"""What every part does with texts: make them storable, compare them, estimate and bound their tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_BYTES_PER_TOKEN = 4
_OVERHEAD_TOKENS = 8  # what a prompt needs around each memory: a dash, a date, a line


def storable(text: str) -> str:
    """The text as every database and JSON can hold it: NUL and lone surrogates become U+FFFD."""
    if "\0" not in text and text.isascii():
        return text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def normalized(text: str) -> str:
    """The text in Unicode NFC, with single spaces: equal if two texts differ in composition and white space only."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def same_text(text: str) -> str:
    """A key that is equal for texts that differ only in Unicode composition, case, white space and final punctuation."""
    return normalized(text).casefold().rstrip(" .!")


def estimate_tokens(text: str) -> int:
    """Tokens that a memory of this text takes in a prompt, in any script; rather too many than too few."""
    return _OVERHEAD_TOKENS + -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


def within_budget(max_tokens: int | None, found: Iterable[T], text: Callable[[T], str]) -> Iterator[T]:
    """Those of `found`, best first, that fit into `max_tokens` together; one that does not fit leaves room for shorter ones.

    None means no limit.
    """
    for one in found:
        if max_tokens is not None:
            needed = estimate_tokens(text(one))
            if needed > max_tokens:
                continue
            max_tokens -= needed
        yield one
