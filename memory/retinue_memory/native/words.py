"""Texts as terms: words folded and stemmed, without stop words. Sole importer of snowballstemmer, which has no types."""

from __future__ import annotations

import importlib
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self, cast

from .text_caches import cached

RECENT_TEXTS = 256
"""Texts of which it is kept what they were read as: a turn's are asked with, compared, written and indexed."""
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)
"""Scripts that put no space between words: Thai, Lao, Burmese, Khmer, Kana, Han."""

_STOP_WORDS = """
a about after again all also am an and any are as at be because been before being but by can could did do does doing
done down each even ever few for from had has have having he her here hers herself him himself his how i if in into
is it its itself just may me might mine more most much must my myself no nor not now of off on once only or other our
ours out over own quite rather really same shall she should so some still such than that the their theirs them
themselves then there these they this those though through to too under until up upon us very was we were what when
where which while who whom whose why will with would yes yet you your yours yourself
hello hey hi oh ok okay please thank thanks well
aren couldn d didn doesn don hadn hasn haven isn ll m re s shouldn t ve wasn weren won wouldn
"""
_STOP = frozenset(_STOP_WORDS.split())

_QUESTION_MARKS = ("?", "\uff1f", "\u061f")
_ASKS = re.compile(
    r"\s*(?:(?:and|but|hey|hi|hello|ok|okay|please|so)[\s,]+)*(?:"
    r"(?:what|who|whom|whose|where|when|which|why|how)(?:'s|\u2019s)?\s+(?!a\b|an\b|i\b|we\b|my\b)"
    r"|(?:am|are|can|could|did|do|does|has|have|is|may|should|was|were|will|would)\s+(?:i|you|he|she|it|we|they|my|the|there)\b"
    r"|(?:tell|give|show|remind|help)\s+me\b|explain\b|list\b|summari[sz]e\b|translate\b)",
    re.IGNORECASE,
)

_stemmer: Any = importlib.import_module("snowballstemmer").stemmer("english")
_stemming = threading.Lock()


@cached(RECENT_TEXTS)
def terms(text: str) -> tuple[str, ...]:
    """The terms of a text in order, repeated as often as they occur; those of unspaced scripts are character pairs."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return tuple(chain.from_iterable(map(_terms_of, _WORD.findall(folded))))


def is_stop_word(word: str) -> bool:
    """Whether a word, in lower case, carries no meaning of its own."""
    return word in _STOP


@cached(65_536)
def _terms_of(word: str) -> tuple[str, ...]:
    if _UNSPACED.search(word):
        return tuple(_pairs(word))
    if word in _STOP:
        return ()
    if word.isdigit():
        return (word,)  # no stemmer changes it
    with _stemming:  # the stemmer keeps the word it works on in itself
        return (cast(str, _stemmer.stemWord(word)),)


# -- looking before searching --------------------------------------------------------------------------------------------

_ODD = str.maketrans("\u0130\u0131\u017f", "iis")
"""The letters that `re.IGNORECASE` takes for others and `str.lower` does not."""


def folded(text: str) -> str:
    """The text in lower case, so that what a pattern finds in it whatever the case is written one way."""
    return text.lower() if text.isascii() else text.translate(_ODD).lower()


@cached(RECENT_TEXTS)
def words_in(text: str) -> frozenset[str]:
    """The words of a text, `folded`."""
    return frozenset(_WORD.findall(folded(text)))


@dataclass(frozen=True, slots=True)
class Form:
    """A pattern, and `words` of which one is in every text that it is in, or, with a star, a part of a word ("imagin*").

    Most texts have none of them and are not searched: to look for words is many times quicker.
    """

    pattern: re.Pattern[str]
    words: frozenset[str]
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: str, pattern: str, flags: int = re.IGNORECASE) -> Self:
        listed = words.split()
        parts = tuple(word.rstrip("*") for word in listed if word.endswith("*"))
        return cls(re.compile(pattern, flags), frozenset(word for word in listed if not word.endswith("*")), parts)

    def may_be_in(self, text: str, said: frozenset[str]) -> bool:
        """Whether a text whose words are among `said` need be searched."""
        if not self.words.isdisjoint(said):
            return True
        return bool(self.parts) and any(map(folded(text).__contains__, self.parts))

    def search(self, text: str) -> re.Match[str] | None:
        return self.pattern.search(text) if self.may_be_in(text, words_in(text)) else None

    def split(self, text: str) -> list[str]:
        return self.pattern.split(text) if self.may_be_in(text, words_in(text)) else [text]

    def cut(
        self, text: str, said: frozenset[str], to: str | Callable[[re.Match[str]], str] = "", count: int = 0
    ) -> tuple[str, int]:
        """`re.subn` in a text whose words are among `said`."""
        return self.pattern.subn(to, text, count) if self.may_be_in(text, said) else (text, 0)


def asks(text: str) -> bool:
    """Whether a text asks for something rather than telling it."""
    return text.rstrip().endswith(_QUESTION_MARKS) or _ASKS.match(text) is not None


def _pairs(word: str) -> Iterator[str]:
    if len(word) == 1:
        yield word
    for i in range(len(word) - 1):
        yield word[i : i + 2]
