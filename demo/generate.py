#!/usr/bin/env python3
"""The held-out problems of the demo pair's tasks.

    python demo/generate.py                  write demo/heldout.jsonl and a heldout-TASK.jsonl for each other task
    python demo/generate.py --show 5         print five training problems of each task in each voice
    python demo/generate.py --check          check the generators against themselves and against the files
"""

import argparse
import json
import os
import random
import sys

import tasks

HERE = os.path.dirname(os.path.abspath(__file__))


def file_of(name):
    return os.path.join(HERE, "heldout.jsonl" if name == "words" else f"heldout-{name}.jsonl")


def lines(name, count=500):
    for told, solution in tasks.held_out(name, count):
        row = {"question": told.question, "answer": told.answer, "solution": solution}
        if tasks.TASKS[name].SLICES:
            row["slice"] = told.slice
        yield json.dumps(row) + "\n"


def check(name, count):
    """What is wrong with a task, as sentences: each is one broken promise."""
    task, wrong = tasks.TASKS[name], []
    rng = random.Random(3)
    held = tasks.held_out(name)
    for told, _ in held:
        for who, voice_a in [("A", 1.0), ("B", 0.0), ("both", 0.5)]:
            text = task.solution(rng, told, voice_a)
            if not task.right(text, told):
                wrong.append(f"{name}: the solution in voice {who} is not right: {told.question} {text}")
    for told, other in zip(held, held[1:]):
        if told[0].answer != other[0].answer and task.right(other[1], told[0]):
            wrong.append(f"{name}: the answer to another problem is right: {told[0].question} {other[1]}")
    contents = {told.content for told, _ in held}
    for who in tasks.VOICE_A:
        for _ in range(count):
            told = task.problem(rng, slices=who)
            if told.content in contents:
                wrong.append(f"{name}: the {who} reads a held-out problem: {told.question}")
    with open(file_of(name), encoding="utf-8") as written:
        if written.read() != "".join(lines(name)):
            wrong.append(f"{name}: {os.path.basename(file_of(name))} is not what this writes")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        wrong = [w for name in tasks.TASKS for w in check(name, 5000)]
        print("\n".join(wrong) or "all is as it should be")
        sys.exit(bool(wrong))
    for name, task in tasks.TASKS.items():
        if args.show:
            rng = random.Random(1)
            for _ in range(args.show):
                told = task.problem(rng)
                print(told.question)
                for who in ("drafter", "expert"):
                    print(f"  {who}: {task.solution(rng, told, tasks.VOICE_A[who])}")
            continue
        with open(file_of(name), "w", encoding="utf-8") as out:
            out.writelines(lines(name, args.count))
        print(f"{args.count} held-out problems in {file_of(name)}")


if __name__ == "__main__":
    main()
