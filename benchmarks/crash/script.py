"""What each kind of message makes the agent do. Model, clients and checks read it in three processes."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

Tools = tuple[str, ...]

SCRIPTS: dict[str, tuple[Tools, ...]] = {
    "plain": ((),),
    "long": ((),),
    "look": (("look",), ()),
    "charge": (("charge",), ("look",), ()),
    "both": (("look", "charge"), ()),
    "ask": (("question",),),
}
"""The tools that each LLM step calls; none: the answer. `charge` is the tool that is never run twice."""
ALWAYS_ENDS = ("plain", "look", "charge", "both", "long")


@dataclass(frozen=True, slots=True)
class Order:
    """One message: its text carries its id and its kind, so that whoever sees the text knows the rest."""

    id: str
    kind: str

    @property
    def text(self) -> str:
        return f"{self.id} {self.kind} please, remember token{self.id.replace('-', 'x')}"

    @classmethod
    def of(cls, text: str) -> Order:
        id_, kind, *_ = text.split()
        return cls(id_, kind)

    @property
    def steps(self) -> tuple[Tools, ...]:
        return SCRIPTS[self.kind]

    @property
    def answer(self) -> str:
        """What the last step says: the agent's answer."""
        return said(self, len(self.steps))

    def before(self, key: str) -> list[str]:
        """The journal's keys of the steps whose results a step needs."""
        kind, step = key.split("/")[0], int(key.split("/")[1])
        asked = [f"llm/{number}" for number in range(1, step + (kind == "tool"))]
        used = [f"tool/{number}/{place}" for number in range(1, step) for place in range(len(self.steps[number - 1]))]
        return asked + used

    @property
    def last(self) -> str:
        """The journal's key of the last LLM step."""
        return f"llm/{len(self.steps)}"


def pieces(order: Order, step: int) -> list[str]:
    """What the model says in an LLM step, bit by bit. A step that asks a question says nothing."""
    if order.kind == "ask":
        return []
    count = 40 if order.kind == "long" else 2 + crc32(f"{order.id}/{step}".encode()) % 9
    return [f"{order.id}/{step}:", *(f" {number}" for number in range(count))]


def said(order: Order, step: int) -> str:
    return "".join(pieces(order, step))


def may_say(order: Order, text: str) -> bool:
    """Whether a text is how one of the message's answers begins, or all of it."""
    return any(said(order, step).startswith(text) for step in range(1, len(order.steps) + 1))
