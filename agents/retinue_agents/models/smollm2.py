"""The prompt that gets the most out of SmolLM2-135M, as pure functions. What each shape is for was found by measuring.

The model is too small to use a block of memories beside a conversation. It does well when the prompt shows one worked
example of the very thing that is wanted, so there are four shapes, chosen by what the user's last message is:

- a question about themselves, and something they told is known: `recall`, with the two best of it folded into the question;
- such a question, and nothing is known: `unknown`, which says so instead of inventing an answer;
- something they tell about themselves: `statement`, which takes it up in their words;
- anything else: `plain`, the conversation as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retinue_memory import Message

Shape = Literal["recall", "unknown", "statement", "plain"]
Turn = tuple[str, str]
"""A role and what it says."""

MOST_FACTS = 2
_LONGEST_STATEMENT = 280
_DEFAULT_SYSTEM = "You are a helpful assistant."
_USE_FACTS = "Use the facts the user told you earlier to answer."

_RECALL_EXAMPLE: tuple[Turn, ...] = (
    ("user", "Earlier I told you:\n- I have a cat named Tom\n\nWhat is my cat's name?"),
    ("assistant", "You told me that you have a cat named Tom, so your cat's name is Tom."),
)
_UNKNOWN_EXAMPLE: tuple[Turn, ...] = (
    ("user", "What is my cat's name?"),
    ("assistant", "You have not told me your cat's name yet. Please tell me."),
    ("user", "Where does my sister work?"),
    ("assistant", "You have not told me where your sister works yet. Please tell me."),
)
_STATEMENT_EXAMPLE: tuple[Turn, ...] = (
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
_TELLS = re.compile(r"^(i|i'(m|ve|d)|im|my|we|we'(re|ve)|our)\s", re.IGNORECASE)
_ASKS_FOR = re.compile(r"^i('d| would)? (want|need|like|wonder|wish)\b.*\b(you|know|help)\b", re.IGNORECASE)
_PERSONAL = re.compile(r"\b(i|me|my|mine|we|us|our|ours|i'm|i've)\b", re.IGNORECASE)
_ABOUT_THEM = re.compile(
    r"\b(my|mine|our|ours)\b|\b(am|did|was|were) (i|we)\b"
    r"|\bdo (i|we) (like|love|hate|prefer|live|work|have|own|speak|want|study|play|drive)\b",
    re.IGNORECASE,
)
_ASKS_A_FACT = re.compile(
    r"^(what|who|whom|whose|where|when|which|how (old|many|much|long)|do you)('?s)?\b", re.IGNORECASE
)


_EMPTY = (
    "what who whom whose where when which how why the and are was were with from have has had does did you your our this "
    "that there they them for not but can could would should about know remember tell told said called"
)
_EMPTY_WORDS = frozenset(word[:4] for word in _EMPTY.split())


@dataclass(frozen=True, slots=True)
class Prompt:
    """`turns` end with the user's; `prefill` is how the answer begins, given to the model and part of the answer."""

    shape: Shape
    turns: tuple[Turn, ...]
    prefill: str = ""


def shape(messages: Sequence[Message]) -> Prompt:
    """The prompt for a conversation; memories are taken from the metadata of the block that an agent renders."""
    system = "\n".join(m.content for m in messages if m.role == "system" and "memories" not in m.metadata)
    talk = [m for m in messages if m.role in ("user", "assistant") and m.content.strip()]
    asked = talk[-1].content.strip() if talk and talk[-1].role == "user" else ""
    said = _GREETING.sub("", asked).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    question = is_question(said)
    if not question and _tells(said):
        begins = "your" if re.match(r"(my|our)\b", said, re.IGNORECASE) else "you"
        turns = (("system", system or _DEFAULT_SYSTEM), *_STATEMENT_EXAMPLE, ("user", said))
        return Prompt("statement", turns, f"Thank you for telling me that {begins}")
    if said and _PERSONAL.search(said) and (facts := _facts(messages, talk[:-1], said)):
        listed = "\n".join(f"- {fact}" for fact in facts)
        with_facts = f"{system or _DEFAULT_SYSTEM} {_USE_FACTS}"
        folded = f"Earlier I told you:\n{listed}\n\n{said}"
        return Prompt("recall", (("system", with_facts), *_RECALL_EXAMPLE, ("user", folded)))
    if question and _ABOUT_THEM.search(said) and _ASKS_A_FACT.match(said):
        return Prompt("unknown", (("system", system or _DEFAULT_SYSTEM), *_UNKNOWN_EXAMPLE, ("user", said)))
    return Prompt("plain", (("system", system or _DEFAULT_SYSTEM), *((m.role, m.content) for m in talk)))


def is_question(text: str) -> bool:
    """Whether the text asks; many people leave out the question mark."""
    return text.rstrip().endswith("?") or _QUESTION.match(text) is not None


def _tells(text: str) -> bool:
    return len(text) <= _LONGEST_STATEMENT and _TELLS.match(text) is not None and _ASKS_FOR.match(text) is None


def _facts(messages: Sequence[Message], earlier: Sequence[Message], asked: str) -> list[str]:
    """The best that is known: what was recalled, the user's own statements first; else what they told in this context.

    One that shares a word with the question stands alone: with a second one beside it the model mixes them up.
    """
    recalled = [memory for m in messages for memory in m.metadata.get("memories", ())]
    texts = [_GREETING.sub("", memory.content.strip()) for memory in recalled if memory.name != "assistant"]
    statements = [text for text in texts if text and not is_question(text)]
    if not statements:
        told = (_GREETING.sub("", m.content.strip()) for m in reversed(earlier) if m.role == "user")
        statements = [text for text in told if _tells(text) and not is_question(text)]
    words = _content_words(asked)
    shared = {text: len(words & _content_words(text)) for text in statements}
    best = sorted(shared, key=lambda text: (-shared[text], not _tells(text)))
    return [
        " ".join(text.split())[:_LONGEST_STATEMENT].rstrip(".")
        for text in best[: 1 if best and shared[best[0]] else MOST_FACTS]
    ]


def _content_words(text: str) -> set[str]:
    """The beginnings of the words that say what a text is about: "lives" and "living" begin alike."""
    return {word[:4] for word in re.findall(r"[^\W\d_]{3,}", text.lower())} - _EMPTY_WORDS


def fit(prompt: Prompt, characters: int) -> Prompt:
    """The prompt cut to about so many characters: its oldest turns go first, then the start of what is left."""
    (role, system), *rest = prompt.turns
    first = (role, system[: max(characters // 2, 200)])
    room = characters - len(first[1])
    kept: list[Turn] = []
    for role, text in reversed(rest):
        if kept and len(text) > room:
            break
        kept.append((role, text[-max(room, 200) :]))
        room -= len(text)
    if len(kept) > 1 and kept[-1][0] == "assistant":  # an answer to nothing
        kept.pop()
    return Prompt(prompt.shape, (first, *reversed(kept)), prompt.prefill)
