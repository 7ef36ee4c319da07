"""Redaction: remove secrets, card numbers and the like from a text before it is stored.

The patterns look for the forms of secrets, and are tested on texts with and without them. They find no secret that looks like
any other word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from retinue_memory.errors import ConfigError

from .words import Form, words_in

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
    """Redact "password: x" for any x, "my password is x" only if x looks like one: not "my password is too short"."""
    value, is_prose = found["value"], "is" in found["tie"].casefold()
    looks = any(not c.isalpha() for c in value.rstrip(".!?)")) or value[1:].lower() != value[1:]
    if _PLACEHOLDER.fullmatch(value) or value.startswith("[redacted") or (is_prose and not looks):
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
    """The check of ISO 13616: country and check digits moved to the end, letters as numbers from 10, modulo 97 is 1."""
    packed = text.replace(" ", "")
    number = "".join(str(int(c, 36)) for c in packed[4:] + packed[:4])
    return 15 <= len(packed) <= 34 and int(number) % 97 == 1


_REDACTIONS: dict[str, Callable[[str], str]] = {"secret": _secrets, "card": _cards, "email": _emails, "phone": _phones}
DEFAULT = ("secret", "card")


class Redaction:
    """Replaces what it finds by "[redacted secret]" and the like, irrevocably.

    `kinds`: "secret", "card" (and IBANs), "email", "phone", "regex:...". Raises ConfigError for any other.
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
            raise ConfigError("the expression matches the empty text, and so everywhere", key="redact", value=kind)
        return lambda text: pattern.sub("[redacted]", text)
    if not isinstance(kind, str) or kind not in _REDACTIONS:
        known = ", ".join(_REDACTIONS)
        raise ConfigError(f'expected {known}, or "regex:..."', key="redact", value=kind)
    return _REDACTIONS[kind]
