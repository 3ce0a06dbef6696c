"""Word problems: a story around a chain of arithmetic steps, worked step by step, answer last.

A problem is a story (names, things, wording) around a chain of steps. Only the chain decides whether a problem is held
out, so no chain of the held-out set occurs in training in any story or any wording.
"""

from .common import Problem, in_held_out, last_integer

HELD_OUT_SEED = 20_001
SLICES = {}

SHE = ["Ann", "Mia", "Eva", "Lily", "Sara", "Nora", "Ella", "Zoe"]
HE = ["Tom", "Ben", "Max", "Leo", "Sam", "Dan", "Noah", "Finn"]
THINGS = ["apples", "pears", "coins", "books", "cards", "shells", "stones", "stamps", "balls", "pens", "cups", "eggs",
          "keys", "toys", "beads", "nuts"]
PACKS = ["bags", "boxes", "jars", "packs"]

# One operation: what the story says. {P} she or he, {F} a friend, {t} the thing, {p} a kind of pack.
STORY = {
    "gain": ["{P} buys {n} more.", "{P} finds {n} more.", "{F} gives {o} {n} more.", "{P} wins {n} more.",
             "Then {P2} gets {n} {t} from {F}."],
    "lose": ["{P} gives {n} to {F}.", "{P} loses {n} of them.", "{P} sells {n} {t}.", "Then {P2} breaks {n} of them.",
             "{F} takes {n} of them."],
    "double": ["{P} doubles the number.", "Then {P2} gets twice as many."],
    "triple": ["{P} triples the number.", "Then {P2} gets three times as many."],
    "half": ["{P} gives half of them to {F}.", "{P} loses half of them.", "{P} sells half of the {t}."],
    "packs": ["{P} buys {k} {p} with {n} {t} each.", "{F} gives {o} {k} {p} of {n} {t}."],
    "give_packs": ["{P} gives {F} {k} {p} of {n} {t}.", "{P} sells {k} {p} with {n} {t} each."],
    "share": ["{P} shares them equally among {n} friends.", "{P} puts them equally into {n} {p}."],
    "cost": ["{P} sells them for {n} dollars each.", "Each one costs {n} dollars."],
    "more": ["{F} has {n} more {t} than {N}.", "{F} has {n} {t} more than {N}."],
    "fewer": ["{F} has {n} fewer {t} than {N}.", "{F} has {n} {t} fewer than {N}."],
    "times": ["{F} has {w} as many {t} as {N}."],
}
ASK = {
    "now": ["How many {t} does {N} have now?", "How many {t} are left with {N}?", "How many {t} does {N} have in the end?"],
    "share": ["How many {t} are in each part?", "How many {t} does each part have?"],
    "cost": ["How many dollars is that?", "How many dollars are they worth?"],
    "friend": ["How many {t} does {F} have?"],
    "both": ["How many {t} do they have together?", "How many {t} do {N} and {F} have in all?"],
}
# One step of arithmetic: the opening in voice A and in voice B.
STEP = {
    "+": ("With {b} more", "Adding {b} to {a}"),
    "-": ("With {b} fewer", "Taking {b} from {a}"),
    "*": ("With {b} times {a}", "Multiplying {a} by {b}"),
    "/": ("With {b} equal parts", "Splitting {a} into {b}"),
    "&": ("With both together", "Adding {b} to {a}"),
}
SIGN = {"&": "+"}
WORDS = {2: "twice", 3: "three times", 4: "four times"}


def chain(rng):
    """A chain of two to four steps: the start, the operations told by the story, the steps, what is asked."""
    want = rng.choices([2, 3, 4], [35, 40, 25])[0]
    while True:
        steps, told = [], []

        def step(sign, a, b):
            value = {"+": a + b, "&": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
            steps.append((sign, a, b, value))
            return value

        if rng.random() < 0.25:
            k, n = rng.randint(2, 5), rng.randint(2, 9)
            start = ("packs", k, n)
            x = step("*", n, k)
        else:
            x = rng.randint(3, 40)
            start = ("has", 0, x)
        end = rng.choices(["now", "share", "cost", "friend", "both"], [50, 12, 10, 12, 16])[0]
        tail = {"now": 0, "share": 1, "cost": 1, "friend": 1, "both": 2}[end]
        ok = True
        while len(steps) + tail < want and ok:
            op = rng.choices(["gain", "lose", "double", "triple", "half", "packs", "give_packs"], [30, 30, 7, 5, 8, 12, 8])[0]
            k, n = 0, rng.randint(2, 9) if rng.random() < 0.6 else rng.randint(10, 20)
            if op == "gain":
                x = step("+", x, n)
            elif op == "lose":
                ok = n < x
                x = step("-", x, n)
            elif op == "double":
                x, n = step("*", x, 2), 2
            elif op == "triple":
                ok = x <= 30
                x, n = step("*", x, 3), 3
            elif op == "half":
                ok = x % 2 == 0 and x <= 60
                x, n = step("/", x, 2), 2
            else:
                k, n = rng.randint(2, 5), rng.randint(2, 9)
                p = step("*", n, k)
                if op == "packs":
                    x = step("+", x, p)
                else:
                    ok = p < x
                    x = step("-", x, p)
            told.append((op, k, n))
            ok = ok and 1 <= x <= 99
        if not ok or len(steps) + tail != want:
            continue
        if end == "share":
            n = rng.randint(2, 5)
            if x % n or x // n < 2 or x > 60:
                continue
            told.append(("share", 0, n))
            x = step("/", x, n)
        elif end == "cost":
            n = rng.randint(2, 5)
            if x * n > 99 or x > 30:
                continue
            told.append(("cost", 0, n))
            x = step("*", x, n)
        elif end in ("friend", "both"):
            op = rng.choice(["more", "fewer", "times"])
            n = rng.randint(2, 15) if op != "times" else rng.randint(2, 4)
            if (op == "fewer" and n >= x) or (op == "times" and x > 25):
                continue
            told.append((op, 0, n))
            y = step({"more": "+", "fewer": "-", "times": "*"}[op], x, n)
            x = step("&", x, y) if end == "both" else y
        if x <= 99 and all(1 <= s[3] <= 99 for s in steps):
            return start, told, steps, end, x


def content(steps):
    return ";".join(f"{s}{a},{b}" for s, a, b, _ in steps)


def problem(rng, held_out=False, slices=None):
    """One problem of the training set, or of the held-out set."""
    while True:
        start, told, steps, end, answer = chain(rng)
        if in_held_out(content(steps)) == held_out:
            break
    she = rng.random() < 0.5
    name = rng.choice(SHE if she else HE)
    friend = rng.choice([n for n in SHE + HE if n != name])
    thing = rng.choice(THINGS)
    fill = {"N": name, "F": friend, "t": thing, "P": "She" if she else "He", "P2": "she" if she else "he",
            "o": "her" if she else "him"}

    def say(text, k=0, n=0):
        return text.format(k=k, n=n, p=rng.choice(PACKS), w=WORDS.get(n, ""), **fill)

    _, k, n = start
    first = ["{N} has {k} {p} with {n} {t} each.", "{N} has {k} {p} of {n} {t}."] if k else \
        ["{N} has {n} {t}.", "{N} starts with {n} {t}."]
    said = [say(rng.choice(first), k, n)] + [say(rng.choice(STORY[op]), k, n) for op, k, n in told]
    said.append(say(rng.choice(ASK[end])))
    return Problem("words", " ".join(said), answer, content(steps), steps)


def solution(rng, told, voice_a):
    """The worked solution, each place in voice A with probability `voice_a`."""
    lines = []
    for sign, a, b, value in told.working:
        opening_a = rng.random() < voice_a
        link_a = rng.random() < voice_a
        text = STEP[sign][0 if opening_a else 1].format(a=a, b=b)
        if opening_a:
            left, right = (b, a) if sign == "*" else (a, b)
            text += f"{':' if link_a else ' we have'} {left} {SIGN.get(sign, sign)} {right} = {value}."
        else:
            text += f" {'makes' if link_a else 'gives'} {value}."
        lines.append(text)
    return " ".join(lines) + f" Answer: {told.answer}"


def right(text, told):
    return last_integer(text) == told.answer
