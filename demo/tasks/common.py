"""What every task has: a problem, and the rule that decides whether it is held out."""

import zlib
from dataclasses import dataclass, field
from typing import Any

HELD_OUT_ONE_IN = 20


@dataclass
class Problem:
    """One problem: what is asked, what is right, and what the solution is written from.

    `content` is what no wording changes; it alone decides whether the problem is held out. `slice` names the marked slice it belongs to, "" for none.
    """

    task: str
    question: str
    answer: Any
    content: str
    working: Any = field(repr=False, default=None)
    slice: str = ""


def in_held_out(content):
    """Whether a content (a text that no wording changes) belongs to the held-out set."""
    return zlib.crc32(content.encode()) % HELD_OUT_ONE_IN == 0


def last_integer(text):
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return int(digits[-1]) if digits else None


def after_answer(text):
    """What follows the last `Answer:` of a text, or None where there is none."""
    _, mark, rest = text.rpartition("Answer:")
    return rest.strip() if mark else None
