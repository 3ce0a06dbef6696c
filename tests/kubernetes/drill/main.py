"""The drill: a release is installed on a real cluster, used, changed, harmed and removed, and a table says how it went."""

import argparse
import sys
import time

import basics
import changes
import harm
import scaling
from cluster import Broken, Load, base_url


class Loaded:
    """A step under load: what it does, and what may go wrong for the clients meanwhile (nothing)."""

    def __init__(self, does, allowed=None):
        self.does, self.allowed = does, allowed

    def __call__(self, drill):
        said = self.does()
        drill.load.tell("turn")
        report = drill.load.tell("report")
        failures = report["failures"]
        if self.allowed:
            said = f"{said}; {self.allowed(failures)}"
        elif failures:
            first = failures[0]
            raise Broken(f"{len(failures)} of {report['answered'] + len(failures)} requests failed ({said}). "
                         f"The first: {first['what']}; asked again: {first['again']['error'] or 'answered'}")
        return f"{said}; {report['answered']} answers"


class Drill:
    """The steps, in order, and how each went."""

    def __init__(self):
        self.rows, self.load = [], None

    def step(self, title, does):
        began = time.monotonic()
        try:
            said, passed = does(self) if isinstance(does, Loaded) else does(), True
        except Broken as broken:
            said, passed = str(broken), False
        row = (title, time.monotonic() - began, "ok" if passed else "FAILED", said or "")
        self.rows.append(row)
        print(line(row), flush=True)
        return passed

    def begin_load(self):
        self.load = Load(base_url())
        learnt = basics.add_pools(self.load)
        self.load.tell("begin")
        self.load.tell("turn")
        return f"{learnt} texts of an idle cluster; 12 clients ask"

    def end_load(self):
        report = self.load.tell("end")
        if report["failures"]:
            raise Broken(f"failed at the end: {report['failures'][0]['what']}")
        return f"{report['answered']} more answers"


def line(row):
    title, seconds, result, said = row
    return f"{title:<58} {seconds:7.1f} s  {result:<6}  {said}"


UNDER_LOAD = [
    ("drafters: scale up and down", Loaded(changes.scale_a_pool("drafter"))),
    ("experts: scale up and down", Loaded(changes.scale_a_pool("expert"))),
    ("helm upgrade: image tag, start-up setting, reload", Loaded(changes.upgrade)),
    ("a new model version beside the first", Loaded(changes.new_model)),
    ("the first version removed", Loaded(changes.old_model_goes)),
    ("and the other way round", Loaded(changes.first_model_again)),
    ("rollout restart: routers", Loaded(changes.restart("router"))),
    ("rollout restart: drafters", Loaded(changes.restart("drafter"))),
    ("rollout restart: experts", Loaded(changes.restart("expert"))),
    ("eviction of every pod through its budget", Loaded(changes.evictions)),
    ("etcd restarted", Loaded(changes.restart_etcd)),
    ("etcd and its data lost", Loaded(changes.lose_etcd)),
    ("an expert killed", Loaded(harm.killed("expert", "pace"))),
    ("a drafter killed", Loaded(harm.killed("drafter", "pace"))),
    ("etcd killed", Loaded(harm.killed("etcd"))),
    ("a router killed", Loaded(harm.killed("router"), harm.only_streams_of_the_killed)),
    ("wrong: an image tag that does not exist", Loaded(harm.WRONG_TAG)),
    ("wrong: a model that cannot load", Loaded(harm.NO_MODEL)),
    ("wrong: a drafter of another tokenizer", Loaded(harm.OTHER_TOKENIZER)),
]


def main():
    parser = argparse.ArgumentParser(prog="tests/kubernetes/run", description=__doc__)
    parser.add_argument("--only", metavar="WORD", action="append", default=[],
                        help="of the steps under load, those whose title has this word, or another one that is given")
    parser.add_argument("--no-scaling", action="store_true", help="leave the autoscaling steps out")
    typed = parser.parse_args()
    drill = Drill()
    try:
        for title, does in basics.INSTALLED:
            if not drill.step(title, does):
                break
        else:
            go_on(drill, typed)
    finally:
        if drill.load:
            drill.load.end()
        drill.step("helm uninstall", basics.uninstall)
    print("\n" + "\n".join(map(line, drill.rows)))
    failed = sum(row[2] == "FAILED" for row in drill.rows)
    print(f"\n{len(drill.rows)} steps, {failed} failed, {sum(row[1] for row in drill.rows):.0f} s")
    sys.exit(failed > 0)


def go_on(drill, typed):
    if drill.step("the pools of the load; texts of an idle cluster", drill.begin_load):
        for title, does in UNDER_LOAD:
            if not typed.only or any(word in title for word in typed.only):
                drill.step(title, does)
        drill.step("the last answers", drill.end_load)
        drill.load.end()
    if not typed.no_scaling:
        for title, does in scaling.STEPS:
            drill.step(title, does)


if __name__ == "__main__":
    main()
