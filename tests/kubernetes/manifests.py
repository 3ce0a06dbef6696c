"""What helm renders, and questions to it."""

import copy
import functools
import os
import subprocess
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "deploy/k8s/cascadia"
# What cargo built, and the program that is judged.
BUILT = Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target").absolute()
CASCADIA = os.environ.get("CASCADIA", str(BUILT / "debug/cascadia"))
HELM = os.environ.get("HELM", "helm")
KUBERNETES = "1.34"


def helm(*words, **more):
    return subprocess.run([HELM, *map(str, words)], capture_output=True, text=True, **more)


def render(*words):
    """The objects of a release `demo`; raises what helm says where it refuses."""
    return copy.deepcopy(_rendered(words))


@functools.cache
def _rendered(words):
    command = ["template", "demo", CHART, "--namespace", "models", "--kube-version", KUBERNETES, *words]
    answer = helm(*command)
    if answer.returncode:
        raise ValueError(answer.stderr)
    return [thing for thing in yaml.safe_load_all(answer.stdout) if thing]


def named(thing):
    return f"{thing['kind']} {thing['metadata']['name']}"


def of_kind(things, *kinds):
    return [thing for thing in things if thing["kind"] in kinds]


def workloads(things):
    return of_kind(things, "Deployment", "StatefulSet")


def component(workload):
    return pod_labels(workload)["app.kubernetes.io/component"]


def pod(thing):
    """The pod's spec of a workload, or of a pod."""
    return thing["spec"] if thing["kind"] == "Pod" else thing["spec"]["template"]["spec"]


def pod_labels(thing):
    return (thing if thing["kind"] == "Pod" else thing["spec"]["template"])["metadata"]["labels"]


def selects(labels, thing):
    """Whether a selector of labels finds a workload's pods."""
    return bool(labels) and labels.items() <= pod_labels(thing).items()


def main_container(thing):
    return pod(thing)["containers"][0]


def port(container, name):
    """A container's port by its name or number."""
    ports = {p["name"]: p["containerPort"] for p in container.get("ports", [])}
    return ports[name] if isinstance(name, str) else name


def allowed(things, source, target, number):
    """Whether the NetworkPolicies let a pod of one workload connect to a port of another's."""
    return _passes(things, "egress", source, target, number) and _passes(things, "ingress", target, source, number)


def _passes(things, way, home, other, number):
    policies = [p for p in of_kind(things, "NetworkPolicy") if selects(p["spec"]["podSelector"].get("matchLabels"), home)]
    policies = [p for p in policies if way.capitalize() in p["spec"]["policyTypes"]]
    listener = other if way == "egress" else home
    peers, key = ("to", "egress") if way == "egress" else ("from", "ingress")

    def right_port(rule):
        for entry in rule.get("ports", []):
            names = {p["name"]: p["containerPort"] for c in pod(listener)["containers"] for p in c.get("ports", [])}
            if names.get(entry["port"], entry["port"]) == number and entry.get("protocol", "TCP") == "TCP":
                return True
        return "ports" not in rule

    def right_peer(rule):
        found = (p.get("podSelector", {}).get("matchLabels") for p in rule.get(peers, []))
        return peers not in rule or any(selects(labels, other) for labels in found)

    rules = [rule for policy in policies for rule in policy["spec"].get(key) or []]
    return not policies or any(right_port(rule) and right_peer(rule) for rule in rules)
