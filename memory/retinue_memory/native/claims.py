"""What a clause can claim: of whom, what, and whether it is so. The values that rules make and comparisons read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .words import terms

ME = frozenset({"me"})
YOU = frozenset({"you"})


def words_of(text: str) -> list[str]:
    """The words of a table."""
    return text.split()


MONTHS = "january february march april may june july august september october november december"
DAYS = "monday tuesday wednesday thursday friday saturday sunday"
NUMBERS = words_of(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
    """
)
MOMENT = re.compile(
    rf"\b(?:{'|'.join((MONTHS + ' ' + DAYS).split())}|noon|midnight|tomorrow|tonight|next \w+|"
    rf"\d{{1,2}}(?::\d\d)?\s?[ap]\.?m|"
    r"\d{1,2}:\d\d|\d{1,2}(?:st|nd|rd|th)|spring|summer|autumn|winter)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(rf"(?<![\w.,])\d[\d.,:/-]*(?:\s\d[\d.,:/-]*)*|\b(?:{'|'.join(NUMBERS)})\b", re.IGNORECASE)
NUMBER_STEMS = frozenset(terms(" ".join(NUMBERS)))
NAME_WORD = r"(?-i:[A-Z\u00c0-\u00de][\w'.-]*)"


@dataclass(frozen=True, slots=True)
class Claim:
    """`who` (stems of the subject's name, or ME) is, or is not (`holds`), `value` (stems) as far as `slot` goes.

    `only`: there is one value at a time. `changed`: said as news ("now", "new", "any more", a correction). `ends`: says
    only that something is over. `numbers`, `moments` and `names` are what the value holds of each, `text` as it was said.
    """

    slot: str
    who: frozenset[str]
    value: frozenset[str]
    text: str
    holds: bool = True
    only: bool = False
    changed: bool = False
    ends: bool = False
    numbers: frozenset[str] = frozenset()
    moments: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    functional: bool = False
    """Of the subject there is one value whatever its sort: a name, a boss, a favourite."""

    @property
    def number_words(self) -> frozenset[str]:
        """The stems of the value that are numbers."""
        return frozenset(word for word in self.value if NUMBER.fullmatch(word) or word in NUMBER_STEMS)


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause made plain. `corrects`: it says that what was said before was wrong."""

    text: str
    denied: bool = False
    changed: bool = False
    corrects: bool = False
    over: bool = False
    """The action is said to have stopped."""
