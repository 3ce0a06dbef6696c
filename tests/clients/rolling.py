"""The official OpenAI client for Python, retries off, while every node behind a balancer is restarted.

Learns each text from an idle cluster, says "ready", then asks without end over connections that it keeps. Obeys lines on
its standard input: "burst" begins streams on connections of their own and says "begun" when each has brought a token;
"stop" ends it with one JSON object: how much was answered, and everything that went wrong.
"""

import json
import os
import random
import sys
import threading
import time

import openai

BASE, MODEL, TOKENS = os.environ["BASE_URL"], os.environ["MODEL"], int(os.environ["TOKENS"])
NAMES = [MODEL, f"{MODEL}:token_v3@0.6", f"{MODEL}:expert"]
QUESTIONS = ["Mia has 7 apples. She buys 5 more. How many apples does Mia have now?", "Ben has 36 stones."]
CASES = [(name, question, seed) for seed, name in enumerate(NAMES) for question in QUESTIONS]

# The longest pause that a kept connection survives at the client, which gives it up after 5 s.
LONGEST_PAUSE = 4.9

stop = threading.Event()
lock = threading.Lock()
result = {"answered": 0, "failures": []}


def new_client():
    return openai.OpenAI(base_url=BASE, api_key="none", max_retries=0, timeout=120)


def ask(client, case, stream, begun=None):
    name, question, seed = case
    answer = client.completions.create(
        model=name, prompt=question, seed=seed, temperature=0.8, max_tokens=TOKENS, stream=stream
    )
    if not stream:
        return answer.choices[0].text
    text = ""
    for chunk in answer:
        if begun is not None:
            begun.set()
        if chunk.choices:
            text += chunk.choices[0].text
    return text


def attempt(who, client, case, stream, begun=None):
    started = time.time()
    try:
        text = ask(client, case, stream, begun)
        error = None if text == texts[case] else f"another text: {text!r} instead of {texts[case]!r}"
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught} ({caught.__cause__!r})"
    with lock:
        if error is None:
            result["answered"] += 1
        else:
            result["failures"].append(f"{who}, {case[0]}, stream={stream}, after {time.time() - started:.2f} s: {error}")
            print(result["failures"][-1], file=sys.stderr, flush=True)


def load(number, pause):
    client, chance = new_client(), random.Random(number)
    while not stop.is_set():
        attempt(f"client {number}", client, chance.choice(CASES), chance.random() < 0.5)
        # The later within the client's own patience, the closer to the server's.
        stop.wait(chance.uniform(0.8, 1.0) * pause)


idle = new_client()
texts = {case: ask(idle, case, False) for case in CASES}
assert all(texts.values()), texts
print("ready", flush=True)

threads = [threading.Thread(target=load, args=(number, pause)) for number, pause in
           enumerate([0.02, 0.02] + [LONGEST_PAUSE] * 8)]
for thread in threads:
    thread.start()

for line in sys.stdin:
    if line.strip() != "burst":
        break
    signs = []
    for case in CASES[::2] + CASES[::2]:
        begun = threading.Event()
        thread = threading.Thread(target=attempt, args=("a stream begun before", new_client(), case, True, begun))
        thread.start()
        threads.append(thread)
        signs.append(begun)
    for begun in signs:
        begun.wait(60)
    print("begun", flush=True)

stop.set()
for thread in threads:
    thread.join()
print(json.dumps(result), flush=True)
