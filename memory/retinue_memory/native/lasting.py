"""What is worth keeping, and how long it holds: small talk passes, "until Friday" ends on Friday. Pure functions."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from .claims import words_of
from .reading import plain, split
from .text_caches import cached
from .words import (
    RECENT_TEXTS,
    asks,
    terms,
    words_in,
)

# -- what is worth keeping ----------------------------------------------------------------------------------------------

_PLEASANTRIES = words_of(
    """
    a again ah alright amazing and appreciate appreciated are as awesome be best bit bye care cheers clear cool correct
    day done evening everything excellent exactly fair fantastic feel fine for forward free further glad good goodbye
    got great ha haha happy have he hello help helped helpful helping hey hi hm hmm hope how i it is it's i'm i'll job
    just know later let lol look looking lot lots love luck makes many me meet morning much need never mind new nice
    night no not noted now of oh ok okay on perfect please pleased pleasure problem question questions quick really
    right same see sense so soon sorry sounds sure take talk thank thanks that that's the then there this thx to too
    ttyl tomorrow understood very wait wasn't welcome well what's will wonderful worries wow yay yeah yep yes you you're
    your yup
    """
)
_SMALL = frozenset(_PLEASANTRIES)
_WORD = re.compile(r"[\w']+")
_BOILERPLATE = re.compile(
    r"(?:(?:you are|you're) (?:very |most )?welcome|(?:i am|i'm) (?:glad|happy|here|sorry|just an?|an ai|"
    r"a language model|unable|not able|"
    r"afraid)|(?:i )?(?:can not|can't|cannot|do not|don't) (?:help|assist|know|have (?:access|information))|"
    r"as an ai|how (?:can|may) i|"
    r"is there anything|let me know|feel free|(?:that is|that's|sounds|what an?) \w+|happy to|glad to|sure|"
    r"of course|certainly|absolutely|"
    r"got it|noted|understood|good to know|thank you|thanks|great|nice|congratulations|congrats|i (?:will|"
    r"'ll) (?:remember|keep|note)|"
    r"i (?:have |'ve )?(?:noted|saved|remembered)|no problem|my pleasure|hello|hi\b|okay|ok\b)",
    re.IGNORECASE,
)
_SHORT_ANSWER = 90
"""Characters: an assistant's sentence longer than this is more than a formula, however it begins."""


@cached(RECENT_TEXTS)
def is_lasting(role: str, text: str) -> bool:
    """Whether a message is a memory for long; what is not stays findable as a recent message."""
    return any(tells(role, sentence) for sentence in split(text))


def tells(role: str, sentence: str) -> bool:
    """Whether a sentence says anything to remember."""
    words = _WORD.findall(sentence.casefold().replace("\u2019", "'"))
    if _SMALL.issuperset(words) or asks(sentence):
        return False
    if role == "assistant":
        return not (_BOILERPLATE.match(plain(sentence)) and len(sentence) < _SHORT_ANSWER) and bool(terms(sentence))
    return True


# -- how long it holds --------------------------------------------------------------------------------------------------

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_COUNT_WORDS = "zero one two three four five six seven eight nine ten"
_COUNTS = {word: number for number, word in enumerate(_COUNT_WORDS.split())} | {
    "a": 1,
    "an": 1,
    "another": 1,
    "couple of": 2,
    "few": 3,
    "several": 4,
}
_DAYS = {"hour": 1 / 24, "day": 1, "night": 1, "week": 7, "fortnight": 14, "month": 31, "year": 366}
_PRESENT = re.compile(
    r"\b(?:am|is|are|'s|can|cannot|will|have|has|stay|stays|work|works|need|needs|out of office|away|do not|"
    r"does not)\b",
    re.IGNORECASE,
)
_DONE = re.compile(
    r"\b(?:was|were|had|did|went|bought|met|learned|learnt|got|saw|found|finished|started|decided|moved|"
    r"became|made|took|"
    r"gave|visited|ate|won|lost|turned|quit|left|sold|birthday|anniversary|been|now|every|always|usually|born|"
    r"have (?:been|\w+ed)|has (?:been|\w+ed))\b",
    re.IGNORECASE,
)
_UNTIL = re.compile(
    rf"\b(?:until|till|through)\s+(?:(?:the )?(?:end of )?(?P<day>{'|'.join(_WEEKDAYS)}|tomorrow|tonight|next week|"
    rf"the weekend|this week|the month)|(?:the )?(?P<nth>\d{{1,2}})(?:st|nd|rd|"
    rf"th)?(?: of)? (?P<month>{'|'.join(_MONTHS)})|"
    rf"(?P<month2>{'|'.join(_MONTHS)}) (?P<nth2>\d{{1,2}})(?:st|nd|rd|th)?|(?:the end of |"
    rf"mid-)?(?P<month3>{'|'.join(_MONTHS)}))\b",
    re.IGNORECASE,
)
_FOR = re.compile(
    rf"\bfor (?:the |another )?(?:next |coming )?(?P<count>\d{{1,3}}|"
    rf"{'|'.join(sorted(_COUNTS, key=len, reverse=True))})?\s?"
    rf"(?:more )?(?P<unit>{'|'.join(_DAYS)})s?\b",
    re.IGNORECASE,
)
_NOW_ONLY = re.compile(
    r"\b(?P<span>today|tonight|this (?:morning|afternoon|evening|weekend|week|month)|all (?:day|"
    r"week))\b",
    re.IGNORECASE,
)
_ENDING = frozenset({"until", "till", "through", "for", "today", "tonight", "this", "all"})
"""Words of which one is in whatever names an end."""


def end_of(text: str, said_at: datetime) -> datetime | None:
    """When what a text says will have ended, if it says so; None: it lasts. Only a text that is temporary as a whole ends."""
    ends = [_sentence_end(plain(sentence), said_at) for sentence in split(text)]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def _sentence_end(sentence: str, said_at: datetime) -> datetime | None:
    if _ENDING.isdisjoint(words_in(sentence)):
        return None
    if asks(sentence) or _DONE.search(sentence) or not _PRESENT.search(sentence):
        return None
    if found := _UNTIL.search(sentence):
        return _until(found, said_at)
    if (found := _FOR.search(sentence)) and (
        found["count"] or re.search("next|coming|another", found[0], re.IGNORECASE)
    ):
        count = found["count"] or "1"
        days = _DAYS[found["unit"].casefold()] * (int(count) if count.isdigit() else _COUNTS[count.casefold()])
        return said_at + timedelta(days=days) if days < 1 else _end_of_day(said_at + timedelta(days=days))
    if found := _NOW_ONLY.search(sentence):
        return _span_end(found["span"].casefold(), said_at)
    return None


def _until(found: re.Match[str], said_at: datetime) -> datetime | None:
    if day := found["day"]:
        day = day.casefold()
        if day in _WEEKDAYS:
            ahead = (_WEEKDAYS.index(day) - said_at.weekday()) % 7 or 7
            return _end_of_day(said_at + timedelta(days=ahead))
        return _span_end({"the weekend": "this week", "next week": "next week"}.get(day, day), said_at)
    month = found["month"] or found["month2"] or found["month3"]
    number = _MONTHS.index(month.casefold()) + 1
    nth = int(found["nth"] or found["nth2"] or 0)
    year = said_at.year + (number < said_at.month)
    try:
        first = said_at.replace(year=year, month=number, day=nth or 1)
    except ValueError:
        return None
    if nth:
        return _end_of_day(first)
    whole = (first.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    return _end_of_day(whole)


def _span_end(span: str, said_at: datetime) -> datetime:
    to_sunday = 6 - said_at.weekday()
    days = {
        "tomorrow": 1,
        "this weekend": to_sunday,
        "this week": to_sunday,
        "all week": to_sunday,
        "next week": to_sunday + 7,
    }
    if span in ("this month", "the month"):
        return _end_of_day((said_at.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1))
    return _end_of_day(said_at + timedelta(days=days.get(span, 0)))


def _end_of_day(moment: datetime) -> datetime:
    """Half a day after midnight UTC, as the speaker's day may end that much later."""
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return midnight + timedelta(hours=12)
