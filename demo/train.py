#!/usr/bin/env python3
"""Train the demo pair.

    python demo/train.py --model both            the shipped recipe, or on from the last checkpoint
    python demo/train.py --model expert --tokens 8e6

A run begins from the weights in `--start`. Checkpoints lie in demo/.work/, one every `--minutes` and one where the run is
ended by SIGTERM, and a run goes on from there; at every evaluation the averaged weights are written to demo/pair/MODEL/,
each file in one move. Learning rate: warm-up, constant, then linear decay over the last part (`decay`) of
`--tokens`; a run continued with another `--tokens` decays then.
"""

import argparse
import copy
import os
import random
import signal
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import model as m  # noqa: E402
import tasks  # noqa: E402
import tokenizer as tk  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
RECIPE = {
    "expert": dict(tokens=25e6, decay=0.435, batch=4096, muon=0.02, adam=3e-3, seed=21,
                   mix={"words": 0.8, "rewriting": 1.1, "extraction": 1.1}),
    "drafter": dict(tokens=12e6, decay=0.35, batch=4096, muon=0.02, adam=6e-3, seed=22,
                    mix={"words": 1.2, "rewriting": 1.0, "extraction": 0.8}),
}
WARMUP, AVERAGE = 60, 0.99


def batches(who, tokenizer, seed, size, mix):
    """Endless batches of problems of similar length: ids, and which rows have a solution token to predict."""
    rng = random.Random(seed)
    while True:
        pool = [tasks.problem(rng, mix, who) for _ in range(2000)]
        prompts = tokenizer.encode_batch([tk.render(told.question) for told in pool])
        answers = tokenizer.encode_batch(
            [tasks.solution(rng, told, tasks.VOICE_A[who]) + "<|eos|>" for told in pool])
        rows = sorted(((p.ids, a.ids) for p, a in zip(prompts, answers)), key=lambda r: len(r[0]) + len(r[1]))
        groups, at = [], 0
        while at < len(rows):
            probe = rows[min(at + size // 80, len(rows) - 1)]
            count = max(1, size // (len(probe[0]) + len(probe[1])))
            groups.append(rows[at:at + count])
            at += count
        rng.shuffle(groups)
        for group in groups:
            longest = max(len(p) + len(a) for p, a in group)
            longest += -longest % 8
            ids = torch.full((len(group), longest), m.PAD)
            wanted = torch.zeros((len(group), longest), dtype=torch.bool)
            for r, (p, a) in enumerate(group):
                ids[r, :len(p) + len(a)] = torch.tensor(p + a)
                wanted[r, len(p) - 1:len(p) + len(a) - 1] = True
            yield ids, wanted, sum(len(p) + len(a) for p, a in group)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by a Newton-Schulz iteration."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(buffer, group["momentum"])
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for a, b, c in [(3.4445, -4.7750, 2.0315)] * 5:
                    y = x @ x.T
                    x = torch.addmm(x, torch.addmm(y, y, y, beta=b, alpha=c), x, beta=a)
                x = x.T if tall else x
                p.mul_(1 - group["lr"] * 0.01)
                p.add_(x, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def solved(tokenizer, output, told):
    """Whether an output ends and answers its problem."""
    return output[-1] == m.EOS and tasks.right(tokenizer.decode(output), told)


def accuracies(net, tokenizer, problems):
    """How many of the held-out problems of each task and slice are solved, in percent: `words 96.0, roman 41.0`."""
    prompts = [e.ids for e in tokenizer.encode_batch([tk.render(told.question) for told in problems])]
    marks = {}
    for output, told in zip(m.greedy(net, prompts), problems):
        marks.setdefault(told.slice or told.task, []).append(solved(tokenizer, output, told))
    return ", ".join(f"{name} {100 * sum(good) / len(good):.1f}" for name, good in marks.items())


class Stop:
    """Set by SIGTERM and SIGINT: the run ends after the step it is in."""

    def __init__(self):
        self.asked = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: setattr(self, "asked", True))


def run(who, args, stop):
    recipe = RECIPE[who]
    folder = os.path.join(args.out, who)
    budget = args.tokens or recipe["tokens"]
    tokenizer = tk.load(folder)
    vocab = tokenizer.get_vocab_size()
    mix = {name: recipe["mix"][name] for name in args.task or recipe["mix"]}
    problems = [told for name in mix for told, _ in tasks.held_out(name)[:args.problems]]
    net = m.Model(m.SHAPES[who], vocab)
    if args.start:
        net.load_state_dict(m.read(os.path.join(args.start, who)).state_dict())
        net.train()
    else:
        net.start(torch.Generator().manual_seed(recipe["seed"]))
    matrices = [p for n, p in net.named_parameters() if p.ndim == 2 and n != "embed.weight"]
    others = [p for n, p in net.named_parameters() if p.ndim == 1 or n == "embed.weight"]
    muon = Muon(matrices, args.lr or recipe["muon"])
    adam = torch.optim.AdamW(others, recipe["adam"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    optimisers = [(muon, args.lr or recipe["muon"]), (adam, recipe["adam"])]
    mean = copy.deepcopy(net)
    step = done = epoch = 0
    path = os.path.join(args.work, f"{who}.pt")
    if os.path.exists(path):
        saved = torch.load(path)
        net.load_state_dict(saved["net"])
        mean.load_state_dict(saved["mean"])
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        step, done, epoch = saved["step"], saved["done"], saved["epoch"] + 1
        print(f"{who}: goes on at step {step}, {done / 1e6:.2f} M tokens", flush=True)
    # A continued run reads fresh problems: the seed counts the starts.
    source = batches(who, tokenizer, recipe["seed"] * 1000 + epoch, recipe["batch"], mix)
    forward = torch.compile(net, dynamic=True) if args.compile else net

    def save():
        state = dict(net=net.state_dict(), mean=mean.state_dict(), muon=muon.state_dict(), adam=adam.state_dict(),
                     step=step, done=done, epoch=epoch)
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)

    def evaluate(final=False):
        m.export(folder, mean.state_dict(), m.SHAPES[who], vocab)
        print(f"{who}: step {step} tokens {done / 1e6:.2f} M held-out {accuracies(m.read(folder), tokenizer, problems)} %"
              f"{' (final)' if final else ''}", flush=True)

    began, began_at, losses, told, saved_at = time.time(), done, [], time.time(), time.time()
    while done < budget and not stop.asked:
        share = done / budget
        scale = min(1.0, (step + 1) / WARMUP, max(0.0, min(1.0, (1 - share) / recipe["decay"])))
        for optimiser, rate in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * scale
        ids, wanted, count = next(source)
        hidden = forward(ids)
        logits = net.head(hidden[wanted])
        loss = F.cross_entropy(logits, ids.roll(-1, 1)[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(AVERAGE, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - keep)
        step += 1
        done += count
        losses.append(loss.item())
        if time.time() - told > args.tell:
            told = time.time()
            speed = (done - began_at) / (told - began)
            print(f"{who}: step {step} tokens {done / 1e6:.2f} M loss {sum(losses) / len(losses):.4f} rate x{scale:.2f} "
                  f"{speed:.0f} tokens/s, {(budget - done) / speed / 60:.1f} min left", flush=True)
            losses = []
        if time.time() - saved_at > 60 * args.minutes:
            saved_at = time.time()
            save()
        if step % args.every == 0:
            evaluate()
    save()
    if not stop.asked:
        evaluate(final=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["expert", "drafter", "both"], default="both")
    parser.add_argument("--tokens", type=float, help="how many tokens in all (default: the shipped recipe's)")
    parser.add_argument("--task", choices=list(tasks.TASKS), action="append", help="only this task (repeatable)")
    parser.add_argument("--start", default=os.path.join(HERE, "pair-words"),
                        help="folder of the weights to begin from; empty: from nothing")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="evaluate every so many steps")
    parser.add_argument("--minutes", type=float, default=5, help="save every so many minutes")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems of each task in an evaluation")
    parser.add_argument("--tell", type=float, default=15, help="seconds between progress lines")
    parser.add_argument("--lr", type=float, help="another learning rate for the matrices")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network (faster once compiled)")
    parser.add_argument("--out", default=os.path.join(HERE, "pair"))
    parser.add_argument("--work", default=os.path.join(HERE, ".work"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    os.makedirs(args.work, exist_ok=True)
    names = ["expert", "drafter"] if args.model == "both" else [args.model]
    if not all(os.path.exists(os.path.join(args.out, n, "tokenizer.json")) for n in ("expert", "drafter")):
        tk.train([os.path.join(args.out, n) for n in ("expert", "drafter")])
    stop = Stop()
    for name in names:
        run(name, args, stop)


if __name__ == "__main__":
    main()
