"""Prompts for SmolLM2-135M, as pure functions. The shapes were chosen by measuring the answers.

The model is too small to use a block of memories beside a conversation, but it follows a worked example of the same task.
So a prompt has one of four shapes, chosen by the user's last message:

- `recall`: a question about the user, with the two best known facts put into the question;
- `unknown`: a question about the user of which nothing is known, with an example that says so instead of inventing;
- `statement`: a statement of the user about themselves, with an example that repeats it in their words;
- `plain`: anything else, the conversation unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retinue_memory import Message

Shape = Literal["recall", "unknown", "statement", "plain"]
Line = tuple[str, str]
"""A role and its text."""

MAX_FACTS = 2
_MAX_STATEMENT_CHARACTERS = 280
_DEFAULT_SYSTEM = "You are a helpful assistant."
_USE_FACTS = "Use the facts the user told you earlier to answer."

_RECALL_EXAMPLE: tuple[Line, ...] = (
    ("user", "Earlier I told you:\n- I have a cat named Tom\n\nWhat is my cat's name?"),
    ("assistant", "You told me that you have a cat named Tom, so your cat's name is Tom."),
)
_UNKNOWN_EXAMPLE: tuple[Line, ...] = (
    ("user", "What is my cat's name?"),
    ("assistant", "You have not told me your cat's name yet. Please tell me."),
    ("user", "Where does my sister work?"),
    ("assistant", "You have not told me where your sister works yet. Please tell me."),
)
_STATEMENT_EXAMPLE: tuple[Line, ...] = (
    ("user", "I have a cat named Tom"),
    ("assistant", "Thank you for telling me that you have a cat named Tom."),
    ("user", "My sister is a teacher"),
    ("assistant", "Thank you for telling me that your sister is a teacher."),
)

_GREETING = re.compile(r"^(hi|hello|hey|good (morning|evening|afternoon))\b[\s,.!]*(there\b[\s,.!]*)?", re.IGNORECASE)
_QUESTION = re.compile(
    r"^(what|who|whom|whose|where|when|which|how|why|do|does|did|is|are|am|was|were|can|could|will|would|should|have|has)"
    r"('?s)?\b",
    re.IGNORECASE,
)
_STATEMENT = re.compile(r"^(i|i'(m|ve|d)|im|my|we|we'(re|ve)|our)\s", re.IGNORECASE)
_REQUEST = re.compile(r"^i('d| would)? (want|need|like|wonder|wish)\b.*\b(you|know|help)\b", re.IGNORECASE)
_PERSONAL = re.compile(r"\b(i|me|my|mine|we|us|our|ours|i'm|i've)\b", re.IGNORECASE)
_ABOUT_USER = re.compile(
    r"\b(my|mine|our|ours)\b|\b(am|did|was|were) (i|we)\b"
    r"|\bdo (i|we) (like|love|hate|prefer|live|work|have|own|speak|want|study|play|drive)\b",
    re.IGNORECASE,
)
_FACT_QUESTION = re.compile(
    r"^(what|who|whom|whose|where|when|which|how (old|many|much|long)|do you)('?s)?\b", re.IGNORECASE
)


_STOP_WORDS = (
    "what who whom whose where when which how why the and are was were with from have has had does did you your our this "
    "that there they them for not but can could would should about know remember tell told said called"
)
_STOP_STEMS = frozenset(word[:4] for word in _STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt. Its last line is the user's. `prefill` is the start of the answer, which the model continues."""

    shape: Shape
    lines: tuple[Line, ...]
    prefill: str = ""


def shape(messages: Sequence[Message]) -> Prompt:
    """Build the prompt for a conversation. Memories come from the metadata of the message that `render` returned."""
    system = "\n".join(m.content for m in messages if m.role == "system" and "memories" not in m.metadata)
    talk = [m for m in messages if m.role in ("user", "assistant") and m.content.strip()]
    asked = talk[-1].content.strip() if talk and talk[-1].role == "user" else ""
    said = _GREETING.sub("", asked).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    question = is_question(said)
    if not question and _is_statement(said):
        start = "your" if re.match(r"(my|our)\b", said, re.IGNORECASE) else "you"
        lines = (("system", system or _DEFAULT_SYSTEM), *_STATEMENT_EXAMPLE, ("user", said))
        return Prompt("statement", lines, f"Thank you for telling me that {start}")
    if said and _PERSONAL.search(said) and (facts := _facts(messages, talk[:-1], said)):
        listed = "\n".join(f"- {fact}" for fact in facts)
        with_facts = f"{system or _DEFAULT_SYSTEM} {_USE_FACTS}"
        folded = f"Earlier I told you:\n{listed}\n\n{said}"
        return Prompt("recall", (("system", with_facts), *_RECALL_EXAMPLE, ("user", folded)))
    if question and _ABOUT_USER.search(said) and _FACT_QUESTION.match(said):
        return Prompt("unknown", (("system", system or _DEFAULT_SYSTEM), *_UNKNOWN_EXAMPLE, ("user", said)))
    return Prompt("plain", (("system", system or _DEFAULT_SYSTEM), *((m.role, m.content) for m in talk)))


def is_question(text: str) -> bool:
    """Whether the text is a question, with or without a question mark."""
    return text.rstrip().endswith("?") or _QUESTION.match(text) is not None


def _is_statement(text: str) -> bool:
    return (
        len(text) <= _MAX_STATEMENT_CHARACTERS and _STATEMENT.match(text) is not None and _REQUEST.match(text) is None
    )


def _facts(messages: Sequence[Message], earlier: Sequence[Message], asked: str) -> list[str]:
    """The best known facts: recalled statements of the user, or else their earlier statements in this conversation.

    If the best one shares a word with the question, it is the only one: the model confuses it with a second one.
    """
    recalled = [memory for m in messages for memory in m.metadata.get("memories", ())]
    texts = [_GREETING.sub("", memory.content.strip()) for memory in recalled if memory.name != "assistant"]
    statements = [text for text in texts if text and not is_question(text)]
    if not statements:
        own = (_GREETING.sub("", m.content.strip()) for m in reversed(earlier) if m.role == "user")
        statements = [text for text in own if _is_statement(text) and not is_question(text)]
    stems = _content_stems(asked)
    shared = {text: len(stems & _content_stems(text)) for text in statements}
    best = sorted(shared, key=lambda text: (-shared[text], not _is_statement(text)))
    return [
        " ".join(text.split())[:_MAX_STATEMENT_CHARACTERS].rstrip(".")
        for text in best[: 1 if best and shared[best[0]] else MAX_FACTS]
    ]


def _content_stems(text: str) -> set[str]:
    """The first four letters of each content word, so that "lives" and "living" match."""
    return {word[:4] for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - _STOP_STEMS


def fit(prompt: Prompt, max_characters: int) -> Prompt:
    """Cut the prompt to about `max_characters`: its oldest lines first, then the start of the remaining ones."""
    (role, system), *rest = prompt.lines
    first = (role, system[: max(max_characters // 2, 200)])
    room = max_characters - len(first[1])
    kept: list[Line] = []
    for role, text in reversed(rest):
        if kept and len(text) > room:
            break
        kept.append((role, text[-max(room, 200) :]))
        room -= len(text)
    if len(kept) > 1 and kept[-1][0] == "assistant":  # its question was cut
        kept.pop()
    return Prompt(prompt.shape, (first, *reversed(kept)), prompt.prefill)
