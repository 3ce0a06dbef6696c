"""The tasks of the demo pair, one module each: `problem`, `solution`, `right`, `HELD_OUT_SEED`, `SLICES`.

Every solution has places where it can be put in two ways, voice A or voice B, drawn independently each time. The
drafter reads 75 % A, the expert 75 % B: both know every wording, and prefer different ones.
"""

import random

from . import extraction, rewriting, words

TASKS = {"words": words, "rewriting": rewriting, "extraction": extraction}
VOICE_A = {"drafter": 0.75, "expert": 0.25}  # probability of voice A at every place


def problem(rng, mix, who):
    """One training problem for a reader; `mix` is the weight of each task."""
    name = rng.choices(list(mix), list(mix.values()))[0]
    return TASKS[name].problem(rng, slices=who)


def solution(rng, told, voice_a):
    return TASKS[told.task].solution(rng, told, voice_a)


def right(text, told):
    """Whether a text, its end-of-text mark taken off, answers a problem."""
    return TASKS[told.task].right(text, told)


def held_out(name, count=500):
    """The held-out problems of a task, each once, with a solution in voice B."""
    task = TASKS[name]
    rng, seen, rows = random.Random(task.HELD_OUT_SEED), set(), []
    while len(rows) < count:
        told = task.problem(rng, held_out=True)
        if told.question not in seen:
            seen.add(told.question)
            rows.append((told, task.solution(rng, told, 0.0)))
    return rows
