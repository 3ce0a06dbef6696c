"""Extraction: a sentence, the names of the fields wanted, and one JSON object as the whole answer.

The record that the sentence tells decides whether a problem is held out, so no record of the held-out set occurs in
training in any wording or with any choice of fields. An answer is right if it parses and equals the record's fields,
whatever their order and spacing.

The voices are the order of the keys (A: as the sentence has them, B: as they were asked for) and the space after a
colon and after a comma (A: none, B: one), each drawn once an answer.
"""

import json

from .common import Problem, in_held_out
from .words import HE, PACKS, SHE, THINGS

HELD_OUT_SEED = 20_003
SLICES = {}

NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
WEEK = ["Monday", "Tuesday", "Friday", "Saturday", "Sunday"]
PLACES = ["the market", "the school", "the harbour", "the station", "the library"]
EVENTS = ["a meeting", "a party", "a game", "a lesson"]

# Wordings of a kind of sentence. A field in braces is told; one that a wording leaves out is null in the answer.
KINDS = {
    "sale": [
        "{seller} sells {count} {thing} to {buyer} for {price} dollars.",
        "{buyer} buys {count} {thing} from {seller} for {price} dollars.",
        "For {price} dollars {buyer} gets {count} {thing} from {seller}.",
        "On {day} {buyer} buys {count} {thing} for {price} dollars.",
        "{buyer} buys {count} {thing} from {seller} on {day}.",
        "On {day} {seller} sells {buyer} {count} {thing}.",
    ],
    "gift": [
        "{giver} gives {taker} {count} {thing} on {day}.",
        "{taker} gets {count} {thing} from {giver}.",
        "On {day} {taker} takes {count} {thing} from {giver}.",
        "{giver} has {count} {thing} for {taker}.",
    ],
    "stock": [
        "{place} has {packs} {pack} with {count} {thing} each.",
        "There are {packs} {pack} of {count} {thing} at {place}.",
        "{owner} has {packs} {pack} of {count} {thing} at {place}.",
        "{owner} puts {count} {thing} into each of {packs} {pack}.",
    ],
    "event": [
        "{host} has {event} at {place} on {day} at {hour}.",
        "On {day} at {hour} there is {event} at {place}.",
        "{guest} comes to {event} with {host} on {day}.",
        "{host} and {guest} have {event} at {hour} at {place}.",
    ],
}
FIELDS = {
    "sale": ["seller", "buyer", "count", "thing", "price", "day"],
    "gift": ["giver", "taker", "count", "thing", "day"],
    "stock": ["owner", "place", "packs", "pack", "count", "thing"],
    "event": ["host", "guest", "event", "place", "day", "hour"],
}
PEOPLE = {"seller", "buyer", "giver", "taker", "owner", "host", "guest"}
# A second sentence that answers nothing: {N} is a person of no part in the record.
BESIDE = ["{N} sees it.", "{N} has {n} {t}.", "Then {N} buys {n} {t}.", "{N} was there too."]
ASK = ["Give {fields} as JSON: {text}", "{text} Give {fields} as JSON.", "Fill in {fields} from this: {text}"]


def told(rng):
    """A record and its sentence: what is told, the kind, the fields in the sentence's order, the text."""
    kind = rng.choice(sorted(KINDS))
    wording = rng.choice(KINDS[kind])
    order = sorted((f for f in FIELDS[kind] if "{" + f + "}" in wording), key=lambda f: wording.index("{" + f + "}"))
    people = rng.sample(SHE + HE, 3)
    record, said = {}, {}
    for f in order:
        if f in PEOPLE:
            record[f] = said[f] = people.pop()
        elif f in ("count", "packs", "price", "hour"):
            n = rng.randint(2, 12) if f in ("packs", "hour") else rng.randint(2, 99)
            record[f] = n
            said[f] = NUMBERS[n - 2] if n <= 12 and rng.random() < 0.5 else str(n)
        else:
            choice = {"thing": THINGS, "pack": PACKS, "day": WEEK, "place": PLACES, "event": EVENTS}[f]
            said[f] = rng.choice(choice)
            record[f] = said[f].removeprefix("the ").removeprefix("a ")
    text = wording.format(**said)
    text = text[0].upper() + text[1:]
    if rng.random() < 0.4:
        extra = rng.choice(BESIDE).format(N=people.pop(), n=rng.randint(2, 20), t=rng.choice(THINGS))
        text = f"{text} {extra}" if rng.random() < 0.6 else f"{extra.removeprefix('Then ')} {text}"
    return record, kind, order, text


def problem(rng, held_out=False, slices=None):
    """One problem of the training set, or of the held-out set."""
    while True:
        record, kind, order, text = told(rng)
        content = json.dumps(record, sort_keys=True)
        if in_held_out(content) == held_out:
            break
    wanted = rng.sample(order, rng.randint(2, min(4, len(order))))
    untold = [f for f in FIELDS[kind] if f not in order]
    if untold and rng.random() < 0.25:
        wanted.insert(rng.randint(0, len(wanted)), rng.choice(untold))
    fields = ", ".join(wanted[:-1]) + f" and {wanted[-1]}"
    question = rng.choice(ASK).format(fields=fields, text=text)
    # Fields that the sentence leaves out come last where its order leads.
    by_sentence = [f for f in order if f in wanted] + [f for f in wanted if f not in order]
    return Problem("extraction", question, {f: record.get(f) for f in wanted}, content, by_sentence)


def solution(rng, told, voice_a):
    """The object as text; each of order, colon and comma in voice A with probability `voice_a`."""
    order = told.working if rng.random() < voice_a else list(told.answer)
    colon = ":" if rng.random() < voice_a else ": "
    comma = "," if rng.random() < voice_a else ", "
    return "{" + comma.join(f"{json.dumps(f)}{colon}{json.dumps(told.answer[f])}" for f in order) + "}"


def right(text, told):
    try:
        parsed = json.loads(text)
    except ValueError:
        return False
    return parsed == told.answer and not any(isinstance(v, (bool, float)) for v in parsed.values())
