"""What can be seen of a text without understanding it: whether it asks, what sort of answer it holds or wants, whom it names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .words import asks, is_stop_word

TIME, PLACE, NUMBER, TITLE, REASON = 1, 2, 4, 8, 16

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any_of(phrases: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{phrases})\b", re.IGNORECASE | re.VERBOSE)


_TIMES = _words("""
    yesterday today tonight tomorrow last ago next since recently
    day days week weeks weekend weekends month months year years
    mon monday tues tuesday wed wednesday thurs thursday fri friday saturday sunday
""")
_NUMBERS = _words("""
    one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand
    dozen couple once twice first second third
""")
_REASONS = r"""
    so\ that | that's\ why | inspire\w* | motivat\w+ | made\ me | want(?:ed)?\ to | helps?\ me | due\ to | thanks\ to
"""
_QUOTED = r"[\"\u201c\u00ab]\s?[A-Z][^\"\u201d\u00bb]{2,60}[\"\u201d\u00bb]"
_CAPITALISED = r"(?<=[a-z,]\ )(?:[A-Z][\w'\u2019]+\ ){1,4}[A-Z][\w'\u2019]+"
_TITLED = _words("book novel movie film show song album band artist author podcast game restaurant brand title name")

_Cue = tuple[int, frozenset[str], re.Pattern[str] | None]
"""A sort of answer, the words of which one is enough, and how else it is told. Words are found faster than patterns."""
_HELD: tuple[_Cue, ...] = (
    (
        TIME,
        _TIMES | frozenset(MONTHS) - {"march", "may"},
        _any_of(r"(?:19|20)\d\d | \d{1,2}(?:st|nd|rd|th)"),
    ),
    (PLACE, _words(""), re.compile(r"\b(?:in|at|to|from|near|around|visit(?:ed|ing)?)\s+(?:the\s+)?[A-Z]\w+")),
    (NUMBER, _NUMBERS, re.compile(r"\b\d+\b")),
    (TITLE, _words(""), re.compile(f"{_QUOTED}|{_CAPITALISED}", re.VERBOSE)),
    (REASON, _words("because cause cuz reason"), _any_of(_REASONS)),
)
_WANTED: tuple[_Cue, ...] = (
    (
        TIME,
        _words("when"),
        _any_of(
            r"(?:what|which)\ (?:date|day|month|year|time|week) | how\ (?:long|old) | what\ age"
            r"| how\ (?:many|much)\ (?:days|weeks|months|years|time)"
        ),
    ),
    (
        PLACE,
        _words("where"),
        _any_of(r"(?:what|which)\ (?:city|cities|country|countries|state|town|place|location)s?"),
    ),
    (NUMBER, _words(""), _any_of(r"how\ (?:many|much|often|long|old|far|big|tall) | what\ number")),
    (TITLE, _TITLED | {f"{noun}s" for noun in _TITLED} | _words("series called named"), None),
    (REASON, _words("why reason reasons"), _any_of(r"inspire\w* | motivat\w+")),
)
_SENTENCE = re.compile(r"(?<=[.!?\u061f\uff1f\u3002\uff01])\s+|\n+")
_WORD = re.compile(r"\w+")
_NOBODY = frozenset({"user", "assistant", "system", "human", "ai", "bot", "agent", "me"})
"""What stands for a speaker and is no name."""
_WORDS_TOO = frozenset(
    {"april", "art", "august", "bill", "chip", "dean", "drew", "faith", "frank", "grace", "hope", "jack", "joy", "june"}
    | {"mark", "max", "may", "pat", "penny", "ray", "rich", "rob", "robin", "rose", "sue", "summer", "will"}
)
"""Names that are words as well: they name someone only as they are written."""
_CLOSING = " \"')\u201d\u2019]*"
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")


_BARE = re.compile(r"[\W_]+")
_LONGEST_COURTESY = 80
_COURTESIES = r"""
    (?:many\ )?(?:thanks|thank\ (?:yo)?u|thx|tnx|ty|cheers) (?:\ (?:so|very)\ much|\ a\ (?:lot|ton|million)|\ again|\ anyway)*
    (?:\ for\ (?:everything|that|this|(?:all\ )?(?:your|the)\ (?:help|time|support|advice|answer|explanation)))?
    | much\ appreciated | i\ appreciate\ (?:it|that) | you\ re\ welcome | no\ worries | (?:no|not\ a)\ problem | np | my\ pleasure
    | ok(?:ay|ey|ie)? | kk? | (?:yes|no)(?:\ please)? | yeah | yep | yup | aye | nope | nah | sure(?:\ thing)? | right
    | al(?:l\ )?right | exactly | indeed
    | agreed | correct | absolutely | of\ course | got\ (?:it|that) | i\ see | i\ understand | understood | noted
    | (?:that\ )?makes\ sense | will\ do | never\ ?mind
    | (?:that\ ?s\ |that\ is\ |(?:sounds|looks|all)\ )? (?:(?:very|really|just|pretty)\ )?
    (?:good|great|nice|perfect|awesome|cool|amazing|fine|fantastic|wonderful|brilliant|excellent|lovely|super)
    | (?:hi+|hello+|he+y+|hiya)(?:\ there)? | greetings | howdy | good\ (?:morning|afternoon|evening|night|day)
    | (?:good)?bye(?:\ ?bye)?(?:\ for\ now)? | see\ (?:you|ya)(?:\ (?:later|soon|tomorrow))? | ttyl | take\ care
    | have\ a\ (?:good|great|nice|lovely)\ (?:one|day|evening|night|weekend)
    | lol | (?:ha)+h? | (?:he){2,} | wow+ | o+h+ | a+h+ | h+m+ | u+m+ | yay
    | danke(?:\ sch\u00f6n)? | merci(?:\ beaucoup)? | (?:muchas\ )?gracias | grazie(?:\ mille)? | obrigad[oa] | hola | ciao
    | hallo | bonjour | salut
"""
_COURTESY = re.compile(rf"(?:(?:{_COURTESIES})(?:\ |$)(?:(?:and|so|then|well|please)(?:\ |$))?)+", re.VERBOSE)


def cues(text: str) -> int:
    """Which sorts of answer a text may hold: a sum of TIME, PLACE, NUMBER, TITLE and REASON."""
    return _seen(text, _HELD)


def wanted(question: str) -> int:
    """Which sorts of answer a question wants, in the same bits."""
    return _seen(question, _WANTED)


def _seen(text: str, cues: Sequence[_Cue]) -> int:
    words = frozenset(_WORD.findall(text.casefold()))
    return sum(
        bit
        for bit, telling, pattern in cues
        if not words.isdisjoint(telling) or (pattern is not None and pattern.search(text) is not None)
    )


def asking(text: str) -> float:
    """The share of a text's words that stand in questions and requests, 0..1."""
    sentences = _SENTENCE.split(_without_aside(text))
    asked = [sentence for sentence in sentences if asks(sentence.rstrip(_CLOSING))]
    return _count(asked) / max(_count(sentences), 1) if asked else 0.0


def _count(sentences: Iterable[str]) -> int:
    return sum(len(_WORD.findall(sentence)) for sentence in sentences)


def _without_aside(text: str) -> str:
    """The text without what a client notes in brackets behind it, such as an attachment: not the speaker's own sentence."""
    bare = text.rstrip()
    return bare[: max(bare.rfind("["), 0)] if bare.endswith("]") else text


def naming(speaker: str) -> re.Pattern[str] | None:
    """How a query may name a speaker: whole, by the first name, or by its beginning ("Deb"); group 1 is a following "'s".

    None: that is no name.
    """
    name = speaker.strip()
    if not name or name.casefold() in _NOBODY:
        return None
    first = name.split()[0]
    forms = [re.escape(form) if form.casefold() in _WORDS_TOO else f"(?i:{re.escape(form)})" for form in (name, first)]
    if len(first) > 4 and not is_stop_word(first[:3].casefold()):
        forms.append(re.escape(first[:3].capitalize()))
    return re.compile(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)(['\u2019`]s\b)?")


def needs_memory(text: str) -> bool:
    """Whether a turn's text could be about anything remembered. False only for what is nothing but thanks, greetings,
    assent and the like, or has no letter or digit in it."""
    bare = " ".join(_BARE.sub(" ", text.casefold()).split())
    if len(bare) > _LONGEST_COURTESY or any(mark in text for mark in _QUESTION_MARKS):
        return bool(bare)
    return bool(bare) and _COURTESY.fullmatch(bare) is None
