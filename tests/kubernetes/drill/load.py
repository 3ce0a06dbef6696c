"""Clients of a cluster that is being changed: OpenAI's for Python, without retries, from as many threads as streams.

A process that takes a line and answers it with a line of JSON:

    learn   asks each case once on an idle cluster, whose text is the right one of its models from then on
    begin   from now on all threads ask without end
    turn    returns when each thread has ended what it was asking, and one answer more
    report  what was asked since the last report: how many answers, how many streams are open, everything that went wrong
    end     stops, after the streams that are open

A text belongs to the models that wrote it, which the answer's `system_fingerprint` names: so a second version of a model
may write another text, but always the same one.
"""

import json
import os
import random
import sys
import threading
import time

import openai

BASE = os.environ["BASE_URL"]
QUESTIONS = ["Mia has 7 apples. She buys 5 more. How many apples does Mia have now?", "Ben has 36 stones."]

# A stream's tokens, so that it takes some ten seconds where a node is paced, and what the shipped models make of it.
LONG = [("pace", 700), ("pace:token_v3@0.6", 700), ("pace:expert", 200)]
SHORT = [("demo", 100), ("demo:token_v3@0.6", 100), ("demo:expert", 100)]
CASES = [(*kind, QUESTIONS[seed % 2], seed) for seed, kind in enumerate(LONG + SHORT)]

# Pauses between the requests of a thread. A client that keeps connections gives them up after 5 s.
SOON, LATE = 0.05, 4.9

# Before each attempt at a request that failed.
PAUSES = (0, 0.2, 0.3, 0.5, 1, 2, 4)


class Calm:
    """The texts of an idle cluster, by case and models."""

    def __init__(self):
        self.texts = {}

    def learn(self, case, models, text):
        """What is wrong with a text of an idle cluster: it is another one than the last time."""
        self.texts.setdefault((case, models), text)
        return self.judge(case, models, text)

    def judge(self, case, models, text):
        """What is wrong with a text; nothing if it is that of the idle cluster."""
        expected = self.texts.get((case, models))
        if expected is None:
            return f"written by models {models}, whom the idle cluster did not have"
        return None if text == expected else f"another text: {differs(text, expected)}"


def differs(text, expected):
    same = len(os.path.commonprefix([text, expected]))
    return f"{text[same:same + 40]!r} instead of {expected[same:same + 40]!r} after {same} characters of {len(expected)}"


class Client(threading.Thread):
    """One thread with one connection at a time, kept."""

    def __init__(self, number, cases, pause, shared):
        super().__init__(daemon=True)
        self.cases, self.pause, self.shared = cases, pause, shared
        self.chance = random.Random(number)
        self.client = openai.OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=120)
        self.ended = 0
        self.characters = 0

    def ask(self, case, stream):
        """The models that wrote, and the text."""
        name, tokens, question, seed = case
        long = {"ignore_eos": True} if name.startswith("pace") else {}
        self.characters = 0
        answer = self.client.completions.create(
            model=name, prompt=question, seed=seed, temperature=0.8, max_tokens=tokens, stream=stream, extra_body=long,
        )
        if not stream:
            return answer.system_fingerprint, answer.choices[0].text
        text, models = "", None
        for chunk in answer:
            models = chunk.system_fingerprint or models
            text += "".join(choice.text for choice in chunk.choices)
            self.characters = len(text)
        return models, text

    def run(self):
        while not self.shared.stop.is_set():
            case = self.chance.choice(self.cases)
            self.attempt(case, case[0].startswith("pace") or self.chance.random() < 0.5)
            self.ended += 1
            self.shared.stop.wait(self.chance.uniform(0.8, 1.0) * self.pause)

    def attempt(self, case, stream):
        began = time.time()
        try:
            with self.shared.streaming(stream):
                error = self.shared.calm.judge(case, *self.ask(case, stream))
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught} ({caught.__cause__!r})"
        if error is None:
            self.shared.answered()
            return
        after, got = time.time() - began, self.characters
        kind = "stream" if stream else "request"
        failed = {"what": f"{kind} to {case[0]}, {after:.2f} s and {got} characters after it began: {error}",
                  "broke": stream and got > 0, "again": self.again(case, stream)}
        self.shared.failed(failed)

    def again(self, case, stream):
        """What the same request gets when it is sent until a router takes it, and how many seconds after the failure that
        was. Nothing makes the failure undone."""
        failed = time.time()
        for pause in PAUSES:
            time.sleep(pause)
            sent = time.time()
            try:
                error = self.shared.calm.judge(case, *self.ask(case, stream))
            except openai.APIConnectionError as caught:
                error = f"{caught} ({caught.__cause__!r})"
                continue
            break
        return {"error": error, "seconds": sent - failed}


class Shared:
    """What all threads know and count."""

    def __init__(self):
        self.stop, self.calm = threading.Event(), Calm()
        self.lock = threading.Lock()
        self.streams, self.count, self.failures = 0, 0, []

    def streaming(self, stream):
        shared = self

        class Open:
            def __enter__(self):
                with shared.lock:
                    shared.streams += stream

            def __exit__(self, *_):
                with shared.lock:
                    shared.streams -= stream

        return Open()

    def answered(self):
        with self.lock:
            self.count += 1

    def failed(self, failure):
        with self.lock:
            self.failures.append(failure)

    def report(self):
        with self.lock:
            said = {"answered": self.count, "streams": self.streams, "failures": self.failures}
            self.count, self.failures = 0, []
        return said


def turn(clients, patience):
    before = [client.ended for client in clients]
    until = time.monotonic() + patience
    while any(client.ended < count + 2 for client, count in zip(clients, before)):
        if time.monotonic() > until:
            return {"error": f"some thread has not ended two requests within {patience} s"}
        time.sleep(0.1)
    return {}


def main():
    shared = Shared()
    asker = Client(0, CASES, 0, shared)
    clients = [Client(number, CASES[:3], SOON, shared) for number in range(1, 7)]
    clients += [Client(number, CASES[3:], SOON if number < 9 else LATE, shared) for number in range(7, 13)]
    for line in sys.stdin:
        command, answer = line.strip(), {}
        if command == "learn":
            try:
                wrong = [shared.calm.learn(case, *asker.ask(case, False)) for case in CASES]
                answer = {"learnt": len(CASES), "wrong": [error for error in wrong if error]}
            except Exception as caught:
                answer = {"error": f"{type(caught).__name__}: {caught}"}
        elif command == "begin":
            for client in clients:
                client.start()
        elif command == "turn":
            answer = turn(clients, 120)
        elif command == "report":
            answer = shared.report()
        elif command == "end":
            shared.stop.set()
            for client in clients:
                client.join(120)
            answer = shared.report()
        else:
            answer = {"error": f"{command!r} is no command"}
        print(json.dumps(answer), flush=True)
        if command == "end":
            return


if __name__ == "__main__":
    main()
