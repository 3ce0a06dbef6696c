"""Rewriting between notations: numbers, ordinals, dates, units of measure, Roman numerals.

The value alone decides whether a problem is held out (`347`, whichever way it is written), so no value of the held-out
set of a family occurs in training in any direction or any wording.

Roman numerals are the marked slice: the drafter reads many and the expert next to none, so the drafter is better at
them. Reports give every figure with and without them.
"""

from .common import Problem, after_answer, in_held_out

HELD_OUT_SEED = 20_002
ROMAN = "roman"
# How often a reader meets each slice, in percent of this task's problems; the held-out set's share is "held_out".
SLICES = {ROMAN: {"drafter": 18.0, "expert": 0.3, "held_out": 10.0}}

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
             "twelve": "twelfth"}
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December"]
DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
# Big unit, small unit, how many small in a big one, most of the big one.
UNITS = [("m", "cm", 100, 20), ("km", "m", 1000, 9), ("kg", "g", 1000, 9), ("h", "min", 60, 9), ("min", "s", 60, 9),
         ("dollars", "cents", 100, 40), ("weeks", "days", 7, 12), ("feet", "inches", 12, 9)]
NUMERALS = [("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"),
            ("", "X", "XX", "XXX", "XL", "L", "LX", "LXX", "LXXX", "XC"),
            ("", "C", "CC", "CCC", "CD", "D", "DC", "DCC", "DCCC", "CM"),
            ("", "M")]


def two_digits(n):
    """A number below 100 in words."""
    if n < 20:
        return ONES[n]
    return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def groups(n):
    """The parts of a number from 1 to 9,999 that are words of their own: (value, words), largest first."""
    out = []
    if n >= 1000:
        out.append((n // 1000 * 1000, f"{ONES[n // 1000]} thousand"))
    if n % 1000 >= 100:
        out.append((n % 1000 // 100 * 100, f"{ONES[n % 1000 // 100]} hundred"))
    if n % 100:
        out.append((n % 100, two_digits(n % 100)))
    return out


def in_words(n):
    return " ".join(words for _, words in groups(n))


def ordinal_words(n):
    head, dash, last = in_words(n).rpartition("-")
    if not dash:
        head, dash, last = in_words(n).rpartition(" ")
    last = IRREGULAR.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return head + dash + last


def ordinal_digits(n):
    if n % 100 in (11, 12, 13):
        return f"{n}th"
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def numerals(n):
    """The Roman parts of a number from 1 to 1,999: (value, numeral), largest first."""
    out = []
    for place in (3, 2, 1, 0):
        digit = n // 10 ** place % 10
        if digit:
            out.append((digit * 10 ** place, NUMERALS[place][digit]))
    return out


# A family draws a value and gives: its content, the question's two notations, the working, the answer. Every step of
# the working is a pair: voice A, voice B.

def number(rng):
    n = rng.randint(1, 99) if rng.random() < 0.2 else rng.randint(100, 9999)
    parts = groups(n)
    if rng.random() < 0.5:
        working = [(f"{v} makes {w}.", f"We have {w} for {v}.") for v, w in parts]
        return f"number {n}", str(n), "in words", working, in_words(n)
    working = [(f"{w} makes {v}.", f"We have {v} for {w}.") for v, w in parts]
    return f"number {n}", in_words(n), "in digits", working, str(n)


def ordinal(rng):
    n = rng.randint(1, 199)
    short, long = ordinal_digits(n), ordinal_words(n)
    kind = rng.randrange(3)
    if kind == 0:
        return f"ordinal {n}", short, "in words", [(f"The number {in_words(n)}.", f"It counts {in_words(n)}.")], long
    if kind == 1:
        return f"ordinal {n}", long, "in digits", [(f"The number {n}.", f"It counts {n}.")], short
    ending = [(f"{n} ends in {n % 100}.", f"The end is {n % 100}.")] if n >= 10 else []
    return f"ordinal {n}", str(n), "as an ordinal", ending, short


def date(rng):
    year, month = rng.randint(1900, 2099), rng.randint(1, 12)
    day = rng.randint(1, DAYS[month - 1])
    name = MONTHS[month - 1]
    forms = {
        "as year-month-day": f"{year}-{month:02}-{day:02}", "as day/month/year": f"{day:02}/{month:02}/{year}",
        "with the day first": f"{day} {name} {year}", "with the month first": f"{name} {day}, {year}",
    }
    source, target = rng.sample(sorted(forms), 2)
    spelled = ("with the day first", "with the month first")
    if (source in spelled) == (target in spelled):
        working = [(f"The day: {day}.", f"Day is {day}.")]
    elif source in spelled:
        working = [(f"The month: {name} makes {month:02}.", f"{name} is {month:02}.")]
    else:
        working = [(f"The month: {month:02} makes {name}.", f"Month {month:02} is {name}.")]
    return f"date {year} {month} {day}", forms[source], target, working, forms[target]


def measure(rng):
    big, small, each, most = rng.choice(UNITS)
    a, b = rng.randint(1, most), rng.randint(1, each - 1)
    total, head = a * each + b, a * each
    content = f"measure {big} {a} {b}"
    if rng.random() < 0.5:
        working = [(f"{a} times {each} makes {head}.", f"Multiplying {each} by {a} gives {head}."),
                   (f"With {b} more: {head} + {b} = {total}.", f"Adding {b} to {head} gives {total}.")]
        return content, f"{a} {big} {b} {small}", f"in {small}", working, f"{total} {small}"
    working = [(f"{a} times {each} makes {head}.", f"Multiplying {each} by {a} gives {head}."),
               (f"With {head} fewer: {total} - {head} = {b}.", f"Taking {head} from {total} gives {b}.")]
    return content, f"{total} {small}", f"in {big} and {small}", working, f"{a} {big} {b} {small}"


def roman(rng):
    n = rng.randint(1, 1999)
    parts, whole = numerals(n), "".join(r for _, r in numerals(n))
    if rng.random() < 0.5:
        working = [(f"{v} makes {r}.", f"We have {r} for {v}.") for v, r in parts]
        return f"roman {n}", str(n), "in Roman numerals", working, whole
    working = [(f"{r} makes {v}.", f"We have {v} for {r}.") for v, r in parts]
    return f"roman {n}", whole, "in digits", working, str(n)


FAMILIES = [(number, 26), (ordinal, 12), (date, 30), (measure, 32)]
ASK = ["Write {x} {how}.", "Put {x} {how}.", "How is {x} written {how}?"]


def problem(rng, held_out=False, slices=None):
    """One problem of the training set, or of the held-out set; `slices` is who reads it (a key of `SLICES`' shares)."""
    share = SLICES[ROMAN][slices or "held_out"]
    while True:
        marked = rng.random() * 100 < share
        family = roman if marked else rng.choices([f for f, _ in FAMILIES], [w for _, w in FAMILIES])[0]
        content, x, how, working, answer = family(rng)
        if in_held_out(content) == held_out:
            question = rng.choice(ASK).format(x=x, how=how)
            return Problem("rewriting", question, answer, content, working, ROMAN if marked else "")


def solution(rng, told, voice_a):
    """The worked solution, each step in voice A with probability `voice_a`."""
    lines = [a if rng.random() < voice_a else b for a, b in told.working]
    return " ".join([*lines, f"Answer: {told.answer}"])


def right(text, told):
    return after_answer(text) == told.answer
