"""From a text to what it claims: sentences, clauses made plain ("I'm not a vegan any more" -> "I am a vegan", denied,
changed), and the rules of `forms`. English; in other languages nothing is claimed. Pure functions, without a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .claims import (
    DAYS,
    MONTHS,
    Claim,
    Clause,
)
from .forms import claims_of
from .text_caches import cached
from .words import (
    RECENT_TEXTS,
    Form,
    asks,
    folded,
    words_in,
)

_LONGEST = 600
"""Characters: a longer sentence is a text somebody pasted, and claims nothing of its own."""
_MOST_SENTENCES = 24


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence as it was written, and what it claims. `instead` is the value of a correction that names no subject."""

    text: str
    claims: tuple[Claim, ...] = ()
    instead: str | None = None


# -- making a clause plain ---------------------------------------------------------------------------------------------

_QUOTES = str.maketrans("\u2018\u2019\u02bc\u201c\u201d", "'''\"\"")
_EXPAND: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (held, re.compile(pattern, re.IGNORECASE), to)
    for held, pattern, to in (
        # what a text must hold in lower case; the pattern; what it becomes
        ("the user's", r"\bthe user's\b", "my"),
        ("the user", r"\bthe user\b", "I"),  # as a model that draws facts from messages calls the speaker
        ("i is", r"\bI is\b", "I am"),
        ("i has", r"\bI has\b", "I have"),
        ("i does", r"\bI does\b", "I do"),
        ("won't", r"\bwon't\b", "will not"),
        ("can't", r"\bcan't\b", "can not"),
        ("cannot", r"\bcannot\b", "can not"),
        ("n't", r"n't\b", " not"),
        ("i'm", r"\bI'm\b", "I am"),
        ("im", r"\bIm\b", "I am"),
        ("'re", r"'re\b", " are"),
        ("'ve", r"'ve\b", " have"),
        ("'ll", r"'ll\b", " will"),
        ("'s", r"\b(it|that|he|she|there|here)'s\b", r"\1 is"),
        ("any", r"\bany(?:more| longer)\b", "any more"),
        ("favourite", r"\bfavourite\b", "favorite"),
        ("colour", r"\bcolour\b", "color"),
        ("fianc\u00e9", r"\bfianc\u00e9", "fiance"),
        ("e-mail", r"\be-mail\b", "email"),
        ("phone", r"\b(?:tele|mobile |cell ?)phone\b", "phone"),
        ("email address", r"\bemail address\b", "email"),
        ("gone veg", r"\bgone (vegan|vegetarian)\b", r"become \1"),
    )
)
_SENTENCES = re.compile(r"(?:(?<=[!?;\n])|(?<=[^A-Z\W]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bMrs\.)(?<!\bSt\.))\s+")
_STARTS = r"(?:i|we|my|our|he|she|they|it|the|please)\b"
_CLAUSES = re.compile(
    rf"(?:,|:|\s-|\s\u2013|\s\u2014)\s+(?:(?:and|but|so|because|since|as)\s+)?(?={_STARTS})", re.IGNORECASE
)
_AND = Form.of("and but so", rf"\s+(?:and|but|so)\s+(?={_STARTS}(?!\s+(?:broke|got|split|are|were|have)\b))")
_CORRECTS = Form.of(
    "actually correction sorry misspoke meant wrong mistake turns scratch fact",
    r"\b(?:actually|correction|sorry|misspoke|i meant|i got (?:that|it|this) wrong|my mistake|i was wrong|"
    r"(?:it )?turns out(?: that)?|scratch that|in fact|wrong)\b[,:;]?\s*",
)
_OPENING = re.compile(
    r"^(?:(?:ah|oh|ok|okay|well|hey|hi|hello|no|yes|yeah|btw|by the way|fyi|also|and|but|so|then|good news|"
    r"bad news|update|"
    r"funny|luckily|sadly|unfortunately|finally|today|yesterday|as of \w+|since \w+|last \w+|this \w+|"
    rf"(?:on|in|from) (?:{'|'.join((MONTHS + ' ' + DAYS).split())})|a few \w+ ago|after \w+ing \w+)\b[,:!.]?\s+)+",
    re.IGNORECASE,
)
_NEWS = Form.of(
    "now nowadays these more instead again moment currently longer henceforth after",
    r"[\s,]*\b(?:now|nowadays|these days|from now on|any more|instead(?! of)|again|at the moment|right now|currently|"
    r"no longer|henceforth|after all)\b",
)
_NO_LONGER = Form.of("longer", r"\bno longer\b")
_FILLER = Form.of(
    "just finally recently already still really officially usually normally generally both mostly only definitely simply "
    "also then too",
    r"\b(?:just|finally|recently|already|still|really|officially|usually|normally|generally|both|mostly|only|"
    r"definitely|simply|also|since then|too)\b\s*",
)
_NEW = Form.of("new current latest", r"\b(my|our|the|his|her|their|[\w]+'s) (?:brand )?(?:new|current|latest)\b")
_DENIAL = Form.of(
    "not never",
    r"\b(?:(?:do|does)\s+(?:not|never)|(am|is|are|have|has|will)\s+(?:not|never)|never|can not (?=stand\b))\b\s*",
)
_OVER = Form.of(
    "stopped quit given gave ceased", r"\b(?:have |has )?(?:stopped|quit|given up|gave up|ceased)\s+(?=(?:\w+ing)\b)"
)
_UNREAL = Form.of(
    "if would might could may maybe perhaps should wish hope hoping wonder thinking considering used not said says told asked "
    "thinks claims heard read novel almost nearly ex former formerly previous old "
    "dream* pretend* imagin*",
    r"\b(?:if|would|might|could|(?-i:may)|maybe|perhaps|should|wish|hope|hoping|wonder|thinking (?:about|of)|"
    r"considering|"
    r"used to|did not|can not|was not|were not|dream\w*|pretend\w*|imagin\w*|said|says|told|asked|thinks|"
    r"claims|heard|read that|novel|almost|nearly|"
    r"ex-\w+|ex|former|formerly|previous|old (?:boss|job|flat|house|address))\b(?! is dead)",
)
"""What is not said to be so: wishes, chances, hearsay, the past."""


@cached(RECENT_TEXTS)
def plain(text: str) -> str:
    """The text with contractions, quotes and spellings in one form."""
    if not text.isascii():
        text = text.translate(_QUOTES)
    lower = folded(text)
    for held, pattern, to in _EXPAND:
        if held in lower:
            text = pattern.sub(to, text)
            lower = folded(text)
    return " ".join(text.split())


def _simplified(text: str) -> Clause:
    whole = text.strip(" ,.;!()\"'")
    said = words_in(whole)  # what is cut out brings no new ones
    corrected, corrections = _CORRECTS.cut(whole, said)
    text = _OPENING.sub("", corrected.strip(" ,:;"), count=1)
    text, news = _NEWS.cut(text, said)
    gone = _NO_LONGER.search(whole) is not None
    text, new = _NEW.cut(text, said, r"\1")
    text, _ = _FILLER.cut(text, said)
    text, over = _OVER.cut(text, said, count=1)
    text, denials = _DENIAL.cut(text, said, lambda found: f"{found[1]} " if found[1] else "", count=1)
    return Clause(
        " ".join(text.split()).strip(" ,.;!:"),
        denied=bool(denials or gone or over),
        changed=bool(corrections or news or new or over),
        corrects=bool(corrections),
        over=bool(over),
    )


_PRONOUN = re.compile(
    r"(?:it|that|this|he|she|they) (?:is|are|was) (?:at |on |in |for )?(?P<value>[^,]+)", re.IGNORECASE
)
_NOT = Form.of("not", r",? (?:and )?not (?P<old>[\w .:'-]+)$")
_IT_IS = Form.of("not", r"^(?P<thing>.+?) (?:is|are) not (?P<old>.+?),? (?:it is|they are|but) (?P<value>.+)")


# -- reading ----------------------------------------------------------------------------------------------------------


@cached(4096)
def read(text: str) -> tuple[Sentence, ...]:
    """The sentences of a text with their claims. Quotations, code, lists and questions claim nothing."""
    if len(text) > 20_000:
        return (Sentence(text),)
    return tuple(_sentence(part) for part in split(text))


@cached(RECENT_TEXTS)
def split(text: str) -> tuple[str, ...]:
    """The sentences of a text; together they are the text, but for white space between them."""
    parts = tuple(part for part in _SENTENCES.split(text.strip()) if part.strip())
    return parts if len(parts) <= _MOST_SENTENCES else (text,)


def _sentence(text: str) -> Sentence:
    if len(text) > _LONGEST or "`" in text or text.lstrip().startswith((">", '"', "\u201c", "|")) or asks(text):
        return Sentence(text)
    claims: list[Claim] = []
    instead: str | None = None
    whole = plain(text)
    if denied := _IT_IS.search(whole.strip(" .!")):  # "X isn't A, it's B": a correction of A
        whole = f"Correction: {denied['thing']} is {denied['value']}"
    corrects = False
    for part in (piece for chunk in _CLAUSES.split(whole) for piece in _AND.split(chunk)):
        clause = _simplified(part)
        corrects = corrects or clause.corrects
        if _UNREAL.search(clause.text):
            continue
        shorter, _ = _NOT.cut(clause.text, words_in(clause.text))
        clause = replace(
            clause, text=shorter, changed=clause.changed or corrects or shorter != clause.text, corrects=corrects
        )
        found = list(claims_of(clause))
        if not found and corrects and (pronoun := _PRONOUN.fullmatch(clause.text)):
            instead = pronoun["value"]
        claims += found
    return Sentence(text, tuple(claims), instead)
