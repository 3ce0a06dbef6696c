#!/usr/bin/env python3
"""Measure the demo pair on the held-out problems: accuracy, tokens a pass, the cascade at several thresholds.

    python demo/measure.py                  weights as saved
    python demo/measure.py --q8             matrices rounded to Q8_0 (blocks of 32, scale max|w| / 127)

All greedy. A pass of the expert verifies a block of 6 drafts: the kept ones are emitted, the first that is not kept is
replaced by the expert's token and ends the block; there is no bonus token.
"""

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

import generate  # noqa: E402
import model as m  # noqa: E402
import tokenizer as tk  # noqa: E402
from train import last_integer  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


@torch.no_grad()
def speculate(expert, drafter, prompts, alpha, block=6, new=96):
    """Outputs, passes, emitted tokens, drafts kept although the expert's choice differs. `alpha` None is exact.

    token_v3 with stopping by the expert: a draft is kept if p(d) >= (1 - alpha) max p; EOS is kept or drawn only as
    the expert alone would.
    """
    texts = [list(p) for p in prompts]
    live = list(range(len(prompts)))
    passes = emitted = relaxed = 0
    while live:
        drafts = dict(zip(live, m.greedy(drafter, [texts[i] for i in live], block)))
        verified = {}
        for count in {len(drafts[i]) for i in live}:
            part = [i for i in live if len(drafts[i]) == count]
            rows = m.last_rows(expert, [texts[i] + drafts[i][:-1] for i in part], count)
            verified.update((i, r.reshape(count, -1)) for i, r in zip(part, rows))
        for i in live:
            passes += 1
            for d, row in zip(drafts[i], verified[i]):
                p = row.softmax(-1)
                best = int(p.argmax())
                keep = d == best
                if not keep and alpha is not None and d != m.EOS and best != m.EOS:
                    keep = bool(p[d] >= (1 - alpha) * p.max())
                    relaxed += keep
                texts[i].append(d if keep else best)
                emitted += 1
                if texts[i][-1] == m.EOS or not keep:
                    break
        live = [i for i in live if texts[i][-1] != m.EOS and len(texts[i]) - len(prompts[i]) < new]
    return [t[len(p):] for t, p in zip(texts, prompts)], passes, emitted, relaxed


@torch.no_grad()
def scores(drafter, prompts, outputs):
    """Mean ln q of the drafter's own tokens, at temperature 1."""
    out = []
    for p, o in zip(prompts, outputs):
        rows = m.last_rows(drafter, [p + o[:-1]], len(o))[0].reshape(len(o), -1).log_softmax(-1)
        out.append(rows[torch.arange(len(o)), torch.tensor(o)].mean().item())
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default=os.path.join(HERE, "pair"))
    parser.add_argument("--problems", type=int, default=500)
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
    problems = generate.held_out()[:args.problems]
    prompts = [e.ids for e in tokenizer.encode_batch([tk.render(p["question"]) for p in problems])]

    def right(output, problem):
        return output[-1] == m.EOS and last_integer(tokenizer.decode(output)) == problem["answer"]

    def report(name, outputs, passes=0, emitted=0, relaxed=0):
        score = 100 * sum(map(right, outputs, problems)) / len(problems)
        line = f"{name}: accuracy {score:.1f} %, {sum(map(len, outputs)) / len(outputs):.1f} tokens an answer"
        if passes:
            line += f", {emitted / passes:.2f} tokens a pass, {100 * relaxed / emitted:.1f} % relaxed"
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
    good = [right(o, p) for o, p in zip(drafted, problems)]
    expert_good = [right(o, p) for o, p in zip(alone, problems)]
    order = sorted(score)
    for part in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        alpha = order[int(part * len(order))]
        kept = [s >= alpha for s in score]
        total = sum(g if k else e for k, g, e in zip(kept, good, expert_good))
        print(f"cascade_query alpha {alpha:.4f}: {100 * sum(kept) / len(kept):.0f} % by the drafter, "
              f"accuracy {100 * total / len(kept):.1f} %")
    print(f"mean ln q from {order[0]:.3f} to {order[-1]:.3f}")


if __name__ == "__main__":
    main()
