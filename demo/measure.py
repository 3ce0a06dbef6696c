#!/usr/bin/env python3
"""Measure the demo pair on each task's held-out problems: accuracy, tokens a pass, the cascade at several thresholds.

    python demo/measure.py                  weights as saved
    python demo/measure.py --q8             matrices rounded to Q8_0 (blocks of 32, scale max|w| / 127)

All greedy. A pass of the expert verifies a block of 6 drafts: the kept ones are emitted, the first that is not kept is
replaced by the expert's token and ends the block; there is no bonus token.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

import model as m  # noqa: E402
import tasks  # noqa: E402
import tokenizer as tk  # noqa: E402
from train import solved  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


@torch.no_grad()
def speculate(expert, drafter, prompts, alpha, block=6, new=96):
    """Outputs, and of each its passes and its drafts kept although the expert's choice differs. `alpha` None is exact.

    token_v3 with stopping by the expert: a draft is kept if p(d) >= (1 - alpha) max p; EOS is kept or drawn only as
    the expert alone would.
    """
    texts = [list(p) for p in prompts]
    live = list(range(len(prompts)))
    passes, relaxed = [0] * len(prompts), [0] * len(prompts)
    while live:
        drafts = dict(zip(live, m.greedy(drafter, [texts[i] for i in live], block)))
        verified = {}
        for count in {len(drafts[i]) for i in live}:
            part = [i for i in live if len(drafts[i]) == count]
            rows = m.last_rows(expert, [texts[i] + drafts[i][:-1] for i in part], count)
            verified.update((i, r.reshape(count, -1)) for i, r in zip(part, rows))
        for i in live:
            passes[i] += 1
            for d, row in zip(drafts[i], verified[i]):
                p = row.softmax(-1)
                best = int(p.argmax())
                keep = d == best
                if not keep and alpha is not None and d != m.EOS and best != m.EOS:
                    keep = bool(p[d] >= (1 - alpha) * p.max())
                    relaxed[i] += keep
                texts[i].append(d if keep else best)
                if texts[i][-1] == m.EOS or not keep:
                    break
        live = [i for i in live if texts[i][-1] != m.EOS and len(texts[i]) - len(prompts[i]) < new]
    return [t[len(p):] for t, p in zip(texts, prompts)], passes, relaxed


@torch.no_grad()
def scores(drafter, prompts, outputs):
    """Mean ln q of the drafter's own tokens, at temperature 1."""
    out = []
    for p, o in zip(prompts, outputs):
        rows = m.last_rows(drafter, [p + o[:-1]], len(o))[0].reshape(len(o), -1).log_softmax(-1)
        out.append(rows[torch.arange(len(o)), torch.tensor(o)].mean().item())
    return out


class Column:
    """Figures of one set of problems: with the marked slices, or without."""

    def __init__(self, name, chosen):
        self.name, self.chosen = name, chosen

    def mean(self, values):
        values = [v for v, c in zip(values, self.chosen) if c]
        return sum(values) / len(values)

    def total(self, values):
        return sum(v for v, c in zip(values, self.chosen) if c)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default=os.path.join(HERE, "pair"))
    parser.add_argument("--task", choices=list(tasks.TASKS), action="append", help="only this task (repeatable)")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems of each task")
    parser.add_argument("--block", type=int, default=6)
    parser.add_argument("--alphas", type=float, nargs="*", default=[0.5, 0.7, 0.8, 0.85, 0.9])
    parser.add_argument("--q8", action="store_true")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    expert = m.read(os.path.join(args.pair, "expert"), args.q8)
    drafter = m.read(os.path.join(args.pair, "drafter"), args.q8)
    for name, net in (("expert", expert), ("drafter", drafter)):
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    tokenizer = tk.load(os.path.join(args.pair, "expert"))
    for task in args.task or tasks.TASKS:
        print(f"\n{task}")
        measure(task, tokenizer, expert, drafter, args)


def measure(task, tokenizer, expert, drafter, args):
    problems = [told for told, _ in tasks.held_out(task)[:args.problems]]
    prompts = [e.ids for e in tokenizer.encode_batch([tk.render(told.question) for told in problems])]
    columns = [Column("all", [True] * len(problems))]
    if any(told.slice for told in problems):
        # Only the second column may support that anything beats the expert: the slice is made so that the drafter does.
        columns.append(Column("without the slice", [not told.slice for told in problems]))
        columns.append(Column("the slice alone", [bool(told.slice) for told in problems]))

    def right(outputs):
        return [solved(tokenizer, output, told) for output, told in zip(outputs, problems)]

    def report(name, outputs, passes=None, relaxed=None):
        good, lengths = right(outputs), [len(o) for o in outputs]
        for column in columns:
            line = f"{name} ({column.name}): accuracy {100 * column.mean(good):.1f} %, " \
                f"{column.mean(lengths):.1f} tokens an answer"
            if passes:
                emitted = column.total(lengths)
                line += f", {emitted / column.total(passes):.2f} tokens a pass, " \
                    f"{100 * column.total(relaxed) / emitted:.1f} % relaxed"
            print(line, flush=True)

    alone = m.greedy(expert, prompts)
    report("expert", alone)
    drafted = m.greedy(drafter, prompts)
    report("drafter", drafted)
    outputs, *counts = speculate(expert, drafter, prompts, None, args.block)
    report("speculative", outputs, *counts)
    same = sum(a == b for a, b in zip(outputs, alone))
    print(f"  the expert's own text in {same} of {len(alone)}")
    for alpha in args.alphas:
        outputs, *counts = speculate(expert, drafter, prompts, alpha, args.block)
        report(f"token_v3 alpha {alpha}", outputs, *counts)
    score = scores(drafter, prompts, drafted)
    good, expert_good = right(drafted), right(alone)
    order = sorted(score)
    for part in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        alpha = order[int(part * len(order))]
        kept = [s >= alpha for s in score]
        cascade = [g if k else e for k, g, e in zip(kept, good, expert_good)]
        line = ", ".join(f"{100 * c.mean(cascade):.1f} % ({c.name})" for c in columns)
        print(f"cascade_query alpha {alpha:.4f}: {100 * sum(kept) / len(kept):.0f} % by the drafter, accuracy {line}")
    print(f"mean ln q from {order[0]:.3f} to {order[-1]:.3f}")


if __name__ == "__main__":
    main()
