"""Prompt injection: find orders in texts that others wrote, and tell them from a user's own instructions.

Pure functions of texts. A determined attacker gets past them: recalled text is fenced as data all the same, see `prompt`. The
patterns look for the forms of orders, and are tested on texts with and without them.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from retinue_memory.messages import NOTE

from .reading import split
from .words import Form, words_in

# -- quarantine ---------------------------------------------------------------------------------------------------------

_RULES_WORD = r"(?:instruction|prompt|rule|guideline|direction|command|order|constraint|message|context|polic)\w*"
_MODEL = r"(?:ai|llm|language\ model|chat\ ?bot|assistant|agent)s?"
_MODELS = "ai ais llm llms model models bot bots chatbot chatbots assistant assistants agent agents"
_READING = re.IGNORECASE | re.VERBOSE | re.MULTILINE | re.DOTALL
_TAKES_OVER = tuple(
    Form.of(words, pattern, _READING)
    for words, pattern in (
        (
            "ignore disregard forget override bypass discard",
            rf"""\b(?:ignore|disregard|forget|override|bypass|discard)\b.{{0,40}}\b(?:previous|prior|above|earlier|preceding|
                all|any|your|other|existing|the|system)\b.{{0,30}}\b{_RULES_WORD}""",
        ),
        (
            "ignor* vergiss missachte",
            r"""\b(?:ignor\w+|vergiss|missachte)\b.{0,40}\b(?:anweisung|regel|instrucci|instru|consigne|r\u00e8gle|
                regla)\w*""",
        ),
        (
            "now jetzt longer",
            r"\b(?:you\ are|you're|du\ bist)\ (?:now|ab\ jetzt|no\ longer)\b.{0,60}",
        ),
        (
            "task role instruction instructions goal objective identity purpose prompt",
            r"""\b(?:your|the)\ (?:new|real|actual|true|only)\ (?:task|role|instructions?|goal|objective|identity|purpose|
                system\ prompt)\b""",
        ),
        (
            "system hidden initial",
            r"""\b(?:reveal|print|repeat|show|output|leak)\b.{0,30}\b(?:system|hidden|initial)\ (?:prompt|instructions?|
                message)""",
        ),
        (
            "system* developer* im assistant endoftext inst sys",
            r"""<\|?(?:system|im_start|im_end|assistant|endoftext)\b | \[/?(?:INST|SYS(?:TEM)?)\]
              | ^\W{0,4}(?:system|developer)\ ?(?:prompt|message|note|override)?\ ?:""",
        ),
        (
            "user",
            r"""\b(?:do\ not|don't|never|without)\ (?:tell|telling|inform|informing|alert|mention\w*|reveal\w*|show\w*|
                warn\w*)\b.{0,30}\b(?:the\ )?user\b""",
        ),
        (
            "user human customer",
            r"""\b(?:when|whenever|if|every\ time|next\ time)\b.{0,30}\b(?:the\ )?(?:user|human|customer)\b.{0,60}
                \b(?:reply|respond|answer|say|tell|recommend|suggest|send|include|call|claim|insist|output)\b""",
        ),
        (
            _MODELS,
            rf"""\b{_MODEL}\b.{{0,25}}\b(?:must|should|shall|has\ to|have\ to|need\ to|is\ to|are\ to|please|will\ now|
                required\ to|instructed\ to)\b""",
        ),
        (
            _MODELS,
            rf"""\b(?:attention|note\ to|message\ (?:to|for)|instructions?\ (?:to|for)|dear)\W{{1,3}}(?:the\ |any\ |
                all\ )?{_MODEL}\b""",
        ),
        (
            "memory",
            r"""\b(?:save|store|add|commit|write|remember)\b.{0,30}\b(?:to|in|into)\ (?:your\ )?(?:long-?term\ )?
                memory\b""",
        ),
    )
)
"""Orders to a model that reads the text: they change who gives orders, its role, or what the user may know."""
_ORDERS = re.compile(
    r"""
    (?:^|[.!?:;\n>*-]\s*)(?:please\s+)?(?:always|never|from\ now\ on,?|remember\ (?:to|that)|make\ sure\ to|
        you\ (?:must|should\ always|shall|have\ to))\s+
        (?:\w+ly\s+)?(?:answer|reply|respond|say|tell|recommend|suggest|promote|mention|include|send|forward|
            call|email|use|open|visit|click|run|execute|
        buy|transfer|pay|trust|prefer|the\ user|start|end|append|claim|book|order)\b
  | (?:^|[.!?:;\n>*-]\s*)(?:please\s+)?(?:send|forward|upload|post|transfer|email|exfiltrate|
      copy)\b.{0,80}(?:https?://|@[\w-]+\.|\bwallet\b|\baccount\b|\bIBAN\b)
  | (?:^|[.!?:;\n>*-]\s*)(?:please\s+)?(?:run|execute|call|invoke|use)\ (?:the\ )?(?:following|this|tool|
      function|command|code)\b
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
"""Orders that a user may give, but a page, a file or another agent may not."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_QUOTES = re.compile('[`<>"\u201c]')
_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|<(?P<tag>document|file|page|attachment|quote|webpage|email|search_results?|"
    r"tool_result)\b[^>]*>.*?(?:</(?P=tag)>|\Z)"
    r"|(?:^[ \t]*>[^\n]*(?:\n|\Z))+|\"[^\"]{120,}\"|\u201c[^\u201d]{120,}\u201d",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
OWN = "user"
"""The origin of a user's own words. Others are "assistant", "tool", "file", "page", "agent", or what a caller names."""


@dataclass(frozen=True, slots=True)
class Screened:
    """A message as it may be stored."""

    text: str
    reason: str | None = None
    """Why it is quarantined; None: it is not."""
    quoted: str = ""
    """Quotations that were cut out of `text`, and are stored as a quarantined memory; "" if there are none."""
    quoted_reason: str | None = None


def screen(text: str, origin: str = OWN) -> Screened:
    """Quarantine a text that gives orders, or the quotations in a user's own words that do; a user may give orders."""
    if origin != OWN:
        return Screened(text, orders(text, origin))
    if _QUOTES.search(text) is None:
        return Screened(text)
    quoted = [found[0] for found in _QUOTED.finditer(text)]
    bad = [part for part in quoted if orders(part, "quotation")]
    if not bad:
        return Screened(text)
    own = text
    for part in bad:
        own = own.replace(part, "[quotation kept apart]\n")
    return Screened(own.strip(), None, "\n".join(bad), orders(bad[0], "quotation"))


def orders(text: str, origin: str) -> str | None:
    """Why a text that the user did not write is to be quarantined. Returns None if it gives no orders to a model.

    An assistant may give advice ("always rinse rice"), and note what the user wants.
    """
    seen = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    said = words_in(seen)
    forms = [form for form in _TAKES_OVER if form.may_be_in(seen, said)]
    taking = [found for form in forms if (found := form.pattern.search(seen)) is not None]
    found = min(taking, key=lambda found: found.start(), default=None)
    if found is None and origin not in ("assistant", NOTE):
        found = _ORDERS.search(seen)
    if found is None:
        hidden = _INVISIBLE.search(text) is not None and any("\U000e0000" <= c <= "\U000e007f" for c in text)
        return f"invisible text from the {origin}" if hidden else None
    return f"gives orders, and comes from the {origin}: {' '.join(found[0].split())[:80]!r}"


# -- standing instructions ----------------------------------------------------------------------------------------------

_STANDING = re.compile(
    r"(?:(?:and|but|also|so|ok|okay|hey|hi),?\s+)*(?:"
    r"(?:please\s+)?(?:always|never)\s+(?!been|had|have|was|were|is|am|went|liked|knew|seen|mind|thought|"
    r"wanted|ate|the\b|a\b)\w+"
    r"|(?:from now on|in (?:the )?future|going forward|henceforth),?\s+(?:please\s+|always\s+|never\s+|"
    r"do not\s+|don't\s+|you\s+)?"
    r"(?:answer|reply|respond|use|write|speak|call|keep|give|show|avoid|include|add|skip|stop|suggest|"
    r"recommend|ask|address|format|be)\b"
    r"|(?:please\s+)?(?:do not|don't)\s+(?:ever\s+)?(?:call|suggest|recommend|mention|use|include|add|send|"
    r"ask|remind|tell|offer|book)\b"
    r"|(?:please\s+)?(?:answer|reply|respond|write|speak|talk)\s+(?:to me\s+)?(?:in|with|briefly|shortly|concisely)\b"
    r"|(?:please\s+)?(?:call|address) me\b|(?:please\s+)?keep (?:your |the )?(?:answers?|replies|responses)\b"
    r"|(?:please\s+)?use\s+(?:only\s+)?(?:the\s+)?(?:metric|imperial|celsius|fahrenheit|\d\d-?hour|formal|"
    r"informal|simple|plain)\b"
    r"|i(?:'d| would)? (?:prefer|like|want) (?:it when |that )?you(?:r answers)?\b|you (?:should|"
    r"must) (?:always|never)\b|no emojis?\b"
    r")",
    re.IGNORECASE,
)
_MANNER = re.compile(
    r"\b(?:answer|reply|replies|respond|response|write|speak|talk|call me|address me|metric|imperial|celsius|"
    r"fahrenheit|units?|"
    r"hour|emojis?|brief\w*|short\w*|concise\w*|bullet|format\w*|language|formal|tone|english|german|french|"
    r"spanish|italian)\b",
    re.IGNORECASE,
)


def is_standing(sentence: str) -> bool:
    """Whether a user's sentence is an instruction for all future answers ("never suggest pork"), not a single request."""
    return not sentence.rstrip().endswith("?") and _STANDING.match(sentence.strip().replace("\u2019", "'")) is not None


def applies_always(text: str) -> bool:
    """Whether a text has a standing instruction about how to answer, which applies to every question."""
    return _MANNER.search(text) is not None and any(map(is_standing, split(text)))
