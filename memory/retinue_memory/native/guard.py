"""What may not be stored, and what may not reach a prompt: secrets are redacted, orders in foreign text are quarantined.

Pure functions over texts. Nothing here is proof against a determined attacker: recalled text is fenced as data all the
same (see `rendering`). The patterns look for the forms that secrets and orders have, and are tested both ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retinue_memory.contract import NOTE
from retinue_memory.errors import ConfigError

from .reading import split
from .words import Form, words_in

# -- redaction ----------------------------------------------------------------------------------------------------------

_TOKENS = r"""
    sk-(?:ant-|proj-|or-)?[\w-]{20,}                 # OpenAI, Anthropic, OpenRouter
  | (?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,}      # Stripe
  | gh[pousr]_[0-9A-Za-z]{30,} | github_pat_\w{30,}  # GitHub
  | glpat-[\w-]{20,}                                 # GitLab
  | (?:AKIA|ASIA)[0-9A-Z]{16}                        # AWS
  | AIza[\w-]{35}                                    # Google
  | xox[abeprs]-[0-9A-Za-z-]{10,}                    # Slack
  | hf_[0-9A-Za-z]{30,} | npm_[0-9A-Za-z]{36} | pypi-[\w-]{50,}
  | SG\.[\w-]{16,}\.[\w-]{16,}                       # SendGrid
  | eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}            # JSON Web Token
"""
_TOKEN = re.compile(rf"(?<![\w-])(?:{_TOKENS})(?![\w-])", re.VERBOSE)
_SECRETS = (
    Form.of("begin", r"-----BEGIN (?P<kind>[A-Z ]*PRIVATE KEY)-----.*?(?:-----END (?P=kind)-----|\Z)", re.DOTALL),
    Form.of("bearer", r"(?<=\bbearer )[\w.~+/-]{16,}=*"),
    Form.of("://*", r"(?<=://)[^\s/:@]{1,64}:[^\s/@]{1,128}(?=@)", 0),
)
_NAMED = Form.of(
    "pass* pwd* key* secret* token* credential*",
    r"\b(?P<name>pass(?:word|wd|phrase|code)?|pwd|api[ _-]?key|access[ _-]?key|secret(?:[ _-]?(?:key|"
    r"access[ _-]?key))?|"
    r"(?:auth|access|refresh|api)?[ _-]?token|credentials?)(?P<tie>\s*[\"']?\s*(?:[:=]|\bis\b:?)\s*[\"'`]?)"
    r"(?P<value>[^\s\"'`,;]{4,256})",
)
_PLACEHOLDER = re.compile(
    r"(?:[<${\[].*|x+|\*+|\.+|null|none|true|false|required|optional|string|str|bool|int|your\W?.*)", re.IGNORECASE
)
_DIGIT = re.compile(r"\d")
_CARD = re.compile(r"(?<![\w.])(?:[3-6]\d{3}|2[2-7]\d\d)(?:[ -]?\d){9,15}(?![\w])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,4})?\b")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ ./-]?)?(?:\(\d{1,5}\)[ ./-]?)?\d{2,5}(?:[ ./-]?\d{2,5}){1,5}(?![\w.-]?\d)"
)
_DATE = re.compile(r"\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](?:\d{2}|\d{4})")


def _secrets(text: str) -> str:
    said = words_in(text)
    text = _TOKEN.sub("[redacted secret]", text)
    for form in _SECRETS:
        text, _ = form.cut(text, said, "[redacted secret]")
    return _NAMED.cut(text, said, _named)[0]


def _named(found: re.Match[str]) -> str:
    """ "password: x" whatever x; "my password is x" only where x looks like one: not "my password is too short"."""
    value, said = found["value"], "is" in found["tie"].casefold()
    looks = any(not c.isalpha() for c in value.rstrip(".!?)")) or value[1:].lower() != value[1:]
    if _PLACEHOLDER.fullmatch(value) or value.startswith("[redacted") or (said and not looks):
        return found[0]
    return f"{found['name']}{found['tie']}[redacted secret]"


def _cards(text: str) -> str:
    if _DIGIT.search(text) is None:
        return text
    text = _CARD.sub(lambda found: "[redacted card]" if _luhn(found[0]) else found[0], text)
    return _IBAN.sub(lambda found: "[redacted IBAN]" if _mod97(found[0]) else found[0], text)


def _emails(text: str) -> str:
    return _EMAIL.sub("[redacted email]", text)


def _phones(text: str) -> str:
    return _PHONE.sub(lambda found: "[redacted phone]" if _is_phone(found[0]) else found[0], text)


def _is_phone(text: str) -> bool:
    return 7 <= sum(map(str.isdigit, text)) <= 15 and not _DATE.fullmatch(text.strip())


def _luhn(text: str) -> bool:
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return 13 <= len(digits) <= 19 and (sum(digits[::2]) + doubled) % 10 == 0


def _mod97(text: str) -> bool:
    """ISO 13616: the country and check digits last, letters as numbers from 10, the rest by 97 is 1."""
    packed = text.replace(" ", "")
    number = "".join(str(int(c, 36)) for c in packed[4:] + packed[:4])
    return 15 <= len(packed) <= 34 and int(number) % 97 == 1


_REDACTIONS: dict[str, Callable[[str], str]] = {"secret": _secrets, "card": _cards, "email": _emails, "phone": _phones}
DEFAULT = ("secret", "card")


class Redaction:
    """What is taken out of every text before it is stored: "secret", "card" (IBANs too), "email", "phone", "regex:...".

    What is taken out is replaced by "[redacted secret]" and the like, and cannot be had back. Raises ConfigError.
    """

    def __init__(self, kinds: Sequence[str] = DEFAULT) -> None:
        self.kinds = tuple(kinds)
        self._steps = [_step(kind) for kind in kinds]

    def __call__(self, text: str) -> str:
        for step in self._steps:
            text = step(text)
        return text


def _step(kind: object) -> Callable[[str], str]:
    if isinstance(kind, str) and kind.startswith("regex:"):
        try:
            pattern = re.compile(kind.removeprefix("regex:"))
        except re.error as error:
            raise ConfigError(f"not a regular expression: {error}", key="redact", value=kind) from None
        if pattern.fullmatch(""):
            raise ConfigError("the expression matches nothing at all, and so everywhere", key="redact", value=kind)
        return lambda text: pattern.sub("[redacted]", text)
    if not isinstance(kind, str) or kind not in _REDACTIONS:
        known = ", ".join(_REDACTIONS)
        raise ConfigError(f'what can be redacted is {known}, or "regex:..."', key="redact", value=kind)
    return _REDACTIONS[kind]


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
"""Orders to whoever reads the text as a model: they change who commands, what it is, or what the user may know."""
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
"""Orders that a user may give, and a page, a file or another agent may not."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
_QUOTES = re.compile('[`<>"\u201c]')
_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|<(?P<tag>document|file|page|attachment|quote|webpage|email|search_results?|"
    r"tool_result)\b[^>]*>.*?(?:</(?P=tag)>|\Z)"
    r"|(?:^[ \t]*>[^\n]*(?:\n|\Z))+|\"[^\"]{120,}\"|\u201c[^\u201d]{120,}\u201d",
    re.IGNORECASE | re.DOTALL | re.MULTILINE,
)
OWN = "user"
"""The origin of a user's own words; others are "assistant", "tool", "file", "page", "agent", and whatever a caller names."""


@dataclass(frozen=True, slots=True)
class Screened:
    """A message as it may be stored: `text`, kept from every prompt where `reason` says why; `apart` is what was quoted in
    it and is to be stored by itself, quarantined for `apart_reason`."""

    text: str
    reason: str | None = None
    apart: str = ""
    apart_reason: str | None = None


def screen(text: str, origin: str = OWN) -> Screened:
    """Whether a text gives orders that it has no right to give. A user's own words have; what they quote has not."""
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
    """Why a text of foreign origin is not to reach a prompt; None: it may. An assistant's advice ("always rinse rice") may, and
    what it noted that the user wants."""
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
    """Whether a user's sentence is an instruction for all time to come ("never suggest pork"), not a request of the moment."""
    return not sentence.rstrip().endswith("?") and _STANDING.match(sentence.strip().replace("\u2019", "'")) is not None


def applies_always(text: str) -> bool:
    """Whether a text holds a standing instruction about how to answer, which applies to every question."""
    return _MANNER.search(text) is not None and any(map(is_standing, split(text)))
