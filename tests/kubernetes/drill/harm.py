"""Steps that harm the cluster: pods killed without a word, and values that cannot work."""

import os
import time

from cluster import (
    RELEASE, Broken, command, helm, install, is_ready, kubectl, name, objects, pods, ready_pods, settled, until,
)
from values import UPGRADED, image, merged

# A program that ends a container at once when it is given its name; else the pod is deleted by force, which is softer.
KILL = os.environ.get("KILL", "").split()


def kill(pod):
    if KILL:
        command([*KILL, pod["status"]["containerStatuses"][0]["containerID"].split("//")[1]])
    else:
        kubectl("delete", "pod", name(pod), "--grace-period=0", "--force")


def killed(component, pool=None):
    """One pod's process ends in the middle of its work. How long until there are as many ready pods as before."""

    def step():
        before = ready_pods(component, pool)
        victim, began = before[0], time.monotonic()
        starts = restarts(victim)
        kill(victim)

        def replaced():
            now = ready_pods(component, pool)
            alone = {name(pod): restarts(pod) for pod in now}
            return len(now) >= len(before) and alone.get(name(victim), starts + 1) > starts

        until(f"{name(victim)} replaced", replaced, 120, 0.2)
        took = time.monotonic() - began
        settled()
        return f"as many ready pods as before after {took:.0f} s"

    return step


def restarts(pod):
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))


def only_streams_of_the_killed(failures):
    """A killed router takes its streams along: each must get its text when it is asked for again."""
    for failure in failures:
        if failure["again"]["error"]:
            raise Broken(f"{failure['what']}; asked again: {failure['again']['error']}")
    broke = sum(failure["broke"] for failure in failures)
    longest = max((failure["again"]["seconds"] for failure in failures), default=0)
    refused = len(failures) - broke
    return f"{broke} streams broke, {refused} requests failed; sent again, after {longest:.1f} s at most, all got their text"


def wrong(values, component, pool, says):
    """An upgrade that cannot work: its pods are not ready and say why, and the old ones stay until it is taken back."""

    def step():
        old = {name(pod) for pod in ready_pods(component, pool)}
        install(merged(UPGRADED, values), "--no-wait")
        new = until("a new pod", lambda: [pod for pod in pods(component, pool) if name(pod) not in old], 60)[0]
        try:
            message = until(
                lambda: f"{says!r} in {what_it_says(name(new))!r}",
                lambda: (text := what_it_says(name(new))) and says in text and text, 90,
            )
            gone = old - {name(pod) for pod in ready_pods(component, pool)}
            ready = [name(pod) for pod in ready_pods(component, pool) if name(pod) not in old]
            if gone or ready:
                raise Broken(f"old pods that went: {sorted(gone)}; new ones that are ready: {ready}")
        finally:
            helm("rollback", RELEASE, "--wait", "--timeout", "5m")
            settled()
        return next(line for line in message.splitlines() if says in line).strip()[:200]

    return step


def what_it_says(pod):
    """What an operator sees of a pod that is not ready: its container's state, and its log."""
    found = next((p for p in objects("pods") if name(p) == pod), None)
    if found is None or is_ready(found):
        return ""
    said = []
    for status in found["status"].get("containerStatuses", []):
        for state in (*status.get("state", {}).values(), *status.get("lastState", {}).values()):
            said.append(state.get("message", ""))
    said.append(kubectl("logs", pod, check=False).stdout)
    return "\n".join(said)


WRONG_TAG = wrong(image("no-such-tag"), "drafter", "main", "no-such-tag")
NO_MODEL = wrong({"experts": [{"name": "main", "model": "/demo/pair/nothing"}, UPGRADED["experts"][1]]},
                 "expert", "main", "/demo/pair/nothing")
OTHER_TOKENIZER = wrong({"drafters": [{"name": "main", "synthetic": "acceptance=0.8", "served": ["demo"]},
                                      UPGRADED["drafters"][1]]}, "drafter", "main", "tokenizer")
