"""What a new statement means for the older ones: it says the same, takes their place, or corrects them.

Pure functions over texts and times; no model, no database. The rules, each in one function:

- `says_the_same`: near duplicates, which are one memory.
- `contradicts`: whether one claim takes the place of another; `judge` does it for texts, sentence by sentence.
- `completed`: a correction that names no subject ("actually, it's on Thursday") with the sentence that it corrects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from .claims import (
    ME,
    MOMENT,
    NUMBER,
    Claim,
    words_of,
)
from .forms import PEOPLE_STEMS
from .lasting import tells
from .reading import (
    Sentence,
    plain,
    read,
    split,
)
from .text_caches import cached
from .words import terms

# -- near duplicates ----------------------------------------------------------------------------------------------------

_FILLERS = frozenset(
    words_of(
        """
    a actually also an and anyway basically btw by completely definitely especially honestly indeed just kind like
    literally lot much of oh ok okay please pretty quite rather really so sort still such that the then too totally
    truly very way well yeah yes you know hey hi hello
    """
    )
)
_DECISIVE = frozenset(
    words_of(
        """
    not no never none neither nor without might may could would should will used was were had did going if only almost
    again my your his her our their he she they we before after until since
    """
    )
)
_WORD = re.compile(r"[^\W_]+(?:[.,:][^\W_]+)*")
_ALMOST = 0.9
_FEW = 10
"""Different words: texts of fewer say the same only in the same words."""


@cached(4096)
def _words_of(text: str) -> tuple[str, ...]:
    words = _WORD.findall(plain(text).casefold())
    return tuple(word for word in words if word not in _FILLERS) or tuple(words)


def says_the_same(one: str, other: str) -> bool:
    """Whether two texts say the same in almost the same words: no number, name, denial, tense or order is different."""
    a, b = _words_of(one), _words_of(other)
    if not a or not b:
        return False
    if a == b or min(len(a), len(b)) < _FEW:
        return a == b
    first, second = set(a), set(b)
    if min(len(first), len(second)) < _FEW or len(first & second) < _ALMOST * len(first | second):
        return False
    different = first ^ second
    capitals = {word.casefold() for text in (one, other) for word in re.findall(r"\b[A-Z]\w*", text)}
    telling = any(word in _DECISIVE or word in capitals or any(map(str.isdigit, word)) for word in different)
    return not telling and [word for word in a if word in second] == [word for word in b if word in first]


# -- what takes the place of what ---------------------------------------------------------------------------------------

_OPEN = frozenset({"do", "have", "plan", "like", "allergy"})
"""Of these there may be many at a time; one is over only when it is denied, or told again with another number."""
_PERSONAL = frozenset({"home", "employer", "trade", "age", "weight", "diet", "born", "name"})
"""Of a person, who may be named more or less fully."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What somebody said, and when it began to hold."""

    text: str
    speaker: str
    said_at: datetime


def claims(text: str) -> list[Claim]:
    """What a text claims, sentence by sentence."""
    return [claim for sentence in read(text) for claim in sentence.claims]


def slots(text: str) -> frozenset[str]:
    """What a text's claims are about: "home", "employer", "like", ..."""
    return frozenset(claim.slot for claim in claims(text))


_FOUND_BY_WORDS = _OPEN | {"any", "cancel"}
"""Claims that share words with what they contradict."""


def keys(text: str) -> frozenset[str]:
    """What a text's claims can be looked up by, where words do not find what they contradict: "home", "is boss", ..."""
    return frozenset(
        key
        for claim in claims(text)
        if claim.slot not in _FOUND_BY_WORDS
        for key in ([f"{claim.slot} {stem}" for stem in claim.who] if claim.slot in ("is", "name") else [claim.slot])
    )


def judge(new: Statement, olds: Sequence[Statement]) -> dict[int, frozenset[int]]:
    """Which sentences of which earlier statements no longer hold: {place in `olds`: numbers of its sentences}.

    A statement speaks for its speaker only, and of what was said before it.
    """
    news = claims(new.text)
    if not news:
        return {}
    known = [
        (place, number, claim)
        for place, old in enumerate(olds)
        if old.speaker == new.speaker and old.said_at <= new.said_at
        for number, sentence in enumerate(read(old.text))
        for claim in sentence.claims
    ]
    over: dict[int, frozenset[int]] = {}
    for claim in news:
        people = {old.who for _, _, old in known if old.slot == claim.slot} | {claim.who}
        for place, number, old in known:
            if _is_updated(claim, old) or (contradicts(claim, old) and _one_person(claim, old, people)):
                over[place] = over.get(place, frozenset()) | {number}
    return over


def remainder(text: str, sentences: frozenset[int]) -> str:
    """What is left of a user's text without these sentences; empty where that is only small talk."""
    rest = [part for number, part in enumerate(split(text)) if number not in sentences]
    return " ".join(rest) if any(tells("user", part) for part in rest) else ""


def contradicts(new: Claim, old: Claim) -> bool:
    """Whether the new claim takes the place of the old one, if both are of the same subject (see `_one_person`)."""
    if new.slot == "any":
        return old.holds and bool(new.value) and new.value <= old.value and old.slot in ("do", "have", "plan", "is")
    if new.slot == "cancel":
        thing = old.slot in ("plan", "have") or (old.slot == "is" and bool(new.value & old.who))
        return old.holds and thing and new.value <= old.value | old.who
    if new.slot != old.slot:
        return False
    if new.holds != old.holds:
        return _denies(new, old)
    if not new.holds:
        return False
    return _is_retold(new, old) if new.slot in _OPEN else new.only and _is_another(new, old)


def _denies(new: Claim, old: Claim) -> bool:
    if not new.holds:
        vague = new.slot in _OPEN and not new.changed and len(new.value) < 2  # "I don't have it": of what, nobody knows
        return (new.value < old.value and not vague) or (new.value == old.value) or (new.ends and not new.value)
    return bool(old.value) and (new.value == old.value or (new.changed and old.value <= new.value))


def _is_retold(new: Claim, old: Claim) -> bool:
    """The same doing with another number, or, said as news, with one other word."""
    a, b = new.value - new.number_words, old.value - old.number_words
    if new.numbers and old.numbers:
        return a == b and bool(a) and new.numbers != old.numbers
    common = len(new.value & old.value)
    return new.changed and new.slot == "do" and len(new.value) == len(old.value) == common + 1 and common >= 2


def _is_another(new: Claim, old: Claim) -> bool:
    if new.slot == "couple":
        status, other = _couple(new)
        was, with_ = _couple(old)
        return status != was or bool(other and with_ and other != with_)
    if not old.value or new.value == old.value:
        return False
    if new.slot == "is" and not new.changed:  # "my car is red" and "my car is in the garage" both hold
        pairs = ((new.numbers, old.numbers), (new.moments, old.moments), (new.names, old.names))
        if not any(a and b for a, b in pairs) and not new.functional:
            return False
    refines = new.value < old.value or old.value < new.value
    return not refines or (new.changed and new.slot in ("trade", "is"))


def _couple(claim: Claim) -> tuple[str, frozenset[str]]:
    status = claim.text.split()[0]
    return status, claim.value - frozenset(terms(status))


def _is_updated(new: Claim, old: Claim) -> bool:
    """ "My rent went up to 980" after "I pay 900 in rent": a thing that the other tells the number or the time of."""
    pairs = ((new, old), (old, new))
    return any(
        thing.slot == "is"
        and telling.slot in ("do", "have", "is")
        and new.changed
        and telling.who != thing.who
        and thing.who != ME
        and (telling.who == ME or telling.slot == "is")
        and thing.who <= telling.value
        and (_differ(new.numbers, old.numbers) or _differ(new.moments, old.moments))
        for thing, telling in pairs
    )


def _differ(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one and other) and one != other


def _one_person(new: Claim, old: Claim, people: Iterable[frozenset[str]]) -> bool:
    """Whether both speak of the same: "Anna" is "my cousin Anna" while no other Anna is known."""
    if new.slot in ("any", "cancel"):
        mine = new.who == ME and old.slot == "is" and not old.who & PEOPLE_STEMS
        return mine or not new.who or new.who == old.who
    if new.who == old.who:
        return True
    if new.slot not in _PERSONAL or ME in (new.who, old.who):
        return False
    short, long = sorted((new.who, old.who), key=len)
    return short < long and sum(short < who for who in people) == 1


# -- corrections --------------------------------------------------------------------------------------------------------


def completed(text: str, before: str) -> tuple[str, frozenset[int]] | None:
    """A correction without a subject, read with what was said right before it: the corrected sentence, and the numbers of the
    sentences of `before` that it corrects. None: `text` is none, or nothing before it is of its sort."""
    value = next((sentence.instead for sentence in read(text) if sentence.instead), None)
    if value is None:
        return None
    for number, sentence in reversed(list(enumerate(read(before)))):
        for claim in sentence.claims:
            if corrected := _with(sentence, claim, value):
                return corrected, frozenset({number})
    return None


def _with(sentence: Sentence, claim: Claim, value: str) -> str | None:
    whole = plain(sentence.text)
    if claim.holds and claim.only and claim.text in whole:
        head, _, tail = whole.rpartition(claim.text)
        return f"{head}{value}{tail}"
    for pattern in (MOMENT, NUMBER):
        if pattern.search(value) and (found := pattern.search(whole)):
            return f"{whole[: found.start()]}{(pattern.search(value) or found)[0]}{whole[found.end() :]}"
    return None
