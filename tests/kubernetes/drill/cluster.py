"""The cluster under the drill: kubectl, helm, pods and their pages, and the process that loads it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
CHART = REPOSITORY / "deploy/k8s/cascadia"
RELEASE, NAMESPACE = "demo", "cascadia-drill"
KUBECTL, HELM = os.environ.get("KUBECTL", "kubectl"), os.environ.get("HELM", "helm")


class Broken(Exception):
    """What a step found to be otherwise than promised."""


def command(words, check=True, **more):
    """A program's standard output; what it said where it failed."""
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    if check and ran.returncode:
        raise Broken(f"{' '.join(map(str, words[:6]))} ...: {(ran.stderr or ran.stdout).strip()[-1500:]}")
    return ran.stdout if check else ran


def kubectl(*words, **more):
    return command([KUBECTL, "-n", NAMESPACE, *words], **more)


def helm(*words, **more):
    return command([HELM, "-n", NAMESPACE, *words], **more)


def until(what, condition, seconds=120, pause=0.5):
    """The first true answer of a condition; `what` says what was waited for."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise Broken(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(pause)
    return answer


def objects(kind, **labels):
    """Objects of the release, by kind and the end of their labels' names; a label that is None may be any."""
    labels = {"app.kubernetes.io/instance": RELEASE} | {
        "cascadia/pool" if name == "pool" else f"app.kubernetes.io/{name}": value
        for name, value in labels.items() if value is not None
    }
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    return json.loads(kubectl("get", kind, "-l", selector, "-o", "json"))["items"]


def name(thing):
    return thing["metadata"]["name"]


def is_ready(pod):
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def pods(component, pool=None):
    return objects("pods", component=component, pool=pool)


def ready_pods(component, pool=None):
    return [pod for pod in pods(component, pool) if is_ready(pod)]


def nodes():
    """All pods of the release that serve: not the test's."""
    return [pod for pod in objects("pods") if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "test"]


def settled(seconds=180):
    """Returns when every workload has its pods, all ready, and nobody is going any more."""

    def unsettled():
        waiting = [f"{name(pod)} goes" for pod in nodes() if "deletionTimestamp" in pod["metadata"]]
        for thing in objects("deployments,statefulsets"):
            want, status = thing["spec"]["replicas"], thing["status"]
            current = status.get("observedGeneration", 0) >= thing["metadata"]["generation"]
            counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas")]
            if not current or counts != [want] * 3:
                waiting.append(f"{name(thing)} has {counts} pods, ready, updated of {want}")
        return waiting

    until(lambda: f"settled: {'; '.join(unsettled())}", lambda: not unsettled(), seconds, 1)


def scale(deployment, replicas):
    kubectl("scale", f"deployment/{deployment}", f"--replicas={replicas}")
    settled()


def service(port):
    """Where clients find the routers' port of this name, by the Service's own address: nothing stands between."""
    found = objects("services", component="router")[0]["spec"]
    number = next(each["port"] for each in found["ports"] if each["name"] == port)
    return f"{found['clusterIP']}:{number}"


def base_url():
    return f"http://{service('http')}"


def install(values, *words, verb="upgrade"):
    """helm install or upgrade with values as a structure, and `--wait` unless told otherwise."""
    waiting = [] if "--no-wait" in words else ["--wait", "--timeout", "5m"]
    words = [word for word in words if word != "--no-wait"]
    return helm(verb, RELEASE, CHART, "--values", "-", *waiting, *words, input=json.dumps(values))


class Load:
    """Clients that ask all the time; `load.py`, a process of its own."""

    def __init__(self, url):
        self.process = subprocess.Popen(
            [sys.executable, HERE / "load.py"], env={**os.environ, "BASE_URL": f"{url}/v1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def tell(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "the clients ended"}')
        if "error" in answer:
            raise Broken(f"the clients, told to {word}: {answer['error']}")
        return answer

    def learn(self):
        answer = self.tell("learn")
        if answer["wrong"]:
            raise Broken("; ".join(answer["wrong"]))
        return answer["learnt"]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
