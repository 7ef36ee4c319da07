"""The days that a question names: "on 5 May", "in March 2023", "in 2022", and, from where it is asked, "last week"."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from datetime import date, timedelta

from .cues import MONTHS

Span = tuple[date, date]
"""First and last day."""
_Named = tuple[int | None, int | None, int | None]
"""Year, month and day, as far as they are named."""

_SHORT = "jan feb mar apr jun jul aug sept sep oct nov dec"
_MONTH = rf"(?P<month>{'|'.join((*MONTHS, *_SHORT.split()))})\.?"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_ABSOLUTE = tuple(
    re.compile(rf"\b{form}", re.IGNORECASE)
    for form in (
        rf"{_YEAR}-(?P<number>\d\d)(?:-(?P<day>\d\d))?\b",
        rf"{_DAY}\s+(?:of\s+)?{_MONTH}\b(?:,?\s+{_YEAR}\b)?",
        rf"{_MONTH}\s+{_DAY}\b(?:,?\s+{_YEAR}\b)?",
        rf"{_MONTH}(?:\s+of)?,?\s+{_YEAR}\b",
        rf"{_MONTH}\b",
        rf"{_YEAR}\b",
    )
)
"""The longest form first: what one has read, the next leaves."""
_WORDS_TOO = frozenset({"may", "march", "mar", "jan", "jun", "dec", "sep", "sept"})
"""Months that are words or names as well: alone, they count behind one of these."""
_BEFORE_MONTH = re.compile(
    r"\b(?:in|on|of|from|to|during|since|until|till|by|last|early|mid|late|this|through|and|or|between)\s+$",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\b(?:between|from)\b.+\b(?:and|to|until|till)\b", re.IGNORECASE)
_RELATIVE = (
    (re.compile(r"\b(?:today|tonight|this (?:morning|afternoon|evening))\b", re.IGNORECASE), 0, 0),
    (re.compile(r"\b(?:yesterday|last night)\b", re.IGNORECASE), 1, 1),
    (re.compile(r"\blast weekend\b", re.IGNORECASE), 1, 9),
    (re.compile(r"\b(?:this|past) week\b", re.IGNORECASE), 0, 7),
    (re.compile(r"\blast week\b", re.IGNORECASE), 3, 14),
    (re.compile(r"\b(?:this|past) month\b", re.IGNORECASE), 0, 31),
    (re.compile(r"\blast month\b", re.IGNORECASE), 15, 62),
    (re.compile(r"\blast year\b", re.IGNORECASE), 180, 730),
)
"""(what is said, the newest and the oldest day it may mean, in days before today)."""
_NEAR = "today tonight yesterday this last past ago"
_DAY_WORDS = frozenset((*MONTHS, *_SHORT.split(), *_NEAR.split()))
"""One of these, or a year, stands in every text that names a day."""
_SOME_YEAR = re.compile(r"(?:19|20)\d\d")
_WORD = re.compile(r"\w+")
_SMALL = {
    "a": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
_AGO = re.compile(
    rf"\b(?P<count>\d{{1,3}}|{'|'.join(_SMALL)})\s+(?P<unit>day|week|month|year)s?\s+ago\b", re.IGNORECASE
)
_UNITS = {"day": 1, "week": 7, "month": 30, "year": 365}


def names_days(question: str) -> bool:
    """Whether a question may name a day; where it may not, it has no spans."""
    words = _WORD.findall(question.casefold())
    return not _DAY_WORDS.isdisjoint(words) or _SOME_YEAR.search(question) is not None


def spans(question: str, today: date, years: range) -> list[Span]:
    """The days a question names. A date without a year is looked for in each of `years`."""
    named = [span for parts in _named(question) for span in _resolved(parts, years)]
    if len(named) == 2 and _RANGE.search(question):
        named = [(min(first for first, _ in named), max(last for _, last in named))]
    return named + list(_relative(question, today))


def _named(question: str) -> list[_Named]:
    read: list[tuple[int, int]] = []
    found: list[_Named] = []
    for pattern in _ABSOLUTE:
        for match in pattern.finditer(question):
            if any(match.start() < end and match.end() > start for start, end in read):
                continue
            groups = match.groupdict()
            year, day, name = (
                _number(groups.get("year")),
                _number(groups.get("day")),
                (groups.get("month") or "").lower(),
            )
            alone = year is None and day is None
            if alone and name in _WORDS_TOO and not _BEFORE_MONTH.search(question[: match.start()]):
                continue
            month = _number(groups.get("number")) or (_month(name) if name else None)
            read.append(match.span())
            found.append((year, month, day))
    # "between May and July 2023": the one year holds for all that name none, and is no date of its own
    year = next((year for year, _, _ in found if year is not None), None)
    months = [parts for parts in found if parts[1] is not None]
    return [(own or year, month, day) for own, month, day in months or found]


def _month(name: str) -> int:
    return next(i for i, month in enumerate(MONTHS, 1) if month.startswith(name[:3]))


def _resolved(parts: _Named, years: range) -> Iterator[Span]:
    named, month, day = parts
    for year in years if named is None else (named,):
        if month is None:
            yield date(year, 1, 1), date(year, 12, 31)
        elif 1 <= month <= 12:
            last = monthrange(year, month)[1]
            if day is None:
                yield date(year, month, 1), date(year, month, last)
            elif 1 <= day <= last:
                yield date(year, month, day), date(year, month, day)


def _relative(question: str, today: date) -> Iterator[Span]:
    for pattern, newest, oldest in _RELATIVE:
        if pattern.search(question):
            yield today - timedelta(days=oldest), today - timedelta(days=newest)
    for match in _AGO.finditer(question):
        count = match["count"].lower()
        days = (int(count) if count.isdigit() else _SMALL[count]) * _UNITS[match["unit"].lower()]
        slack = max(1, days // 4)
        yield today - timedelta(days=days + slack), today - timedelta(days=days - slack)


def _number(text: str | None) -> int | None:
    return int(text) if text else None
