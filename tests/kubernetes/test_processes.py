"""The default installation without Kubernetes: each rendered pod runs as a process, on a loopback address of its own.

So ports, probes, flags, variables and the mounted configuration are judged by the programs that get them, and the arrows
of the NetworkPolicies by the connections that the programs really open.
"""

import json
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import yaml

from manifests import (
    CASCADIA, CHART, REPOSITORY, allowed, component, main_container, of_kind, pod, port, render, selects, workloads,
)
from pages import page

PATIENCE = 90


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE} s: {what()}")
        time.sleep(0.2)


class Pod:
    """One pod of a workload as a process."""

    def __init__(self, workload, number, folder, ip):
        self.workload, self.ip = workload, ip
        self.name = f"{workload['metadata']['name']}-{number}"
        self.container = main_container(workload)
        self.folder = folder / self.name
        self.folder.mkdir()
        self.process = None

    def start(self, things, services):
        places = {"/data": self.folder, "/demo/pair": REPOSITORY / "demo/pair"}
        for volume in pod(self.workload)["volumes"]:
            if name := volume.get("configMap", {}).get("name"):
                files = next(c for c in of_kind(things, "ConfigMap") if c["metadata"]["name"] == name)["data"]
                for file, text in files.items():
                    (self.folder / file).write_text(text)
                mount = next(m for m in self.container["volumeMounts"] if m["name"] == volume["name"])
                places[mount["mountPath"]] = self.folder

        def here(word):
            word = word.replace("$(POD_IP)", self.ip).replace("$(POD_NAME)", self.name)
            word = re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1)\b", self.ip, word)
            for service, address in services.items():
                word = re.sub(rf"//{service}\b", f"//{address}", word)
            for place, real in places.items():
                word = re.sub(rf"(^|=){place}(/|$)", rf"\g<1>{real}\2", word)
            return word

        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        for entry in self.container.get("env", []):
            secret = entry.get("valueFrom", {}).get("secretKeyRef")
            environment[entry["name"]] = entry.get("value", "secret" if secret else "")
        command = self.container.get("command", [CASCADIA]) + self.container.get("args", [])
        self.log = self.folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [here(word) for word in command], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    def probe(self, kind):
        probe = self.container[kind]["httpGet"]
        return page(f"{self.ip}:{port(self.container, probe['port'])}", probe["path"])

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def connections(self):
        """Far ends of the connections that the process opened: (address, port)."""
        sockets = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                if found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry)):
                    sockets.add(found[1])
            except OSError:
                continue
        mine = {p["containerPort"] for p in self.container["ports"]}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            near, far = map(endpoint, fields[1:3])
            if fields[9] in sockets and fields[3] == "01" and not (near[0] == self.ip and near[1] in mine):
                yield far


def endpoint(text):
    address, number = text.split(":")
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(address))), int(number, 16)


class Installed(unittest.TestCase):
    """A release whose pods run as processes."""

    VALUES = []

    @classmethod
    def setUpClass(cls):
        cls.things = render(*cls.VALUES)
        cls.folder = Path(tempfile.mkdtemp(prefix="cascadia-chart-"))
        # The whole of 127.0.0.0/8 is loopback: a net of our own, so that fixed ports collide with nobody.
        net = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"
        cls.pods = []
        for thing in workloads(cls.things):
            for number in range(thing["spec"]["replicas"]):
                cls.pods.append(Pod(thing, number, cls.folder, f"{net}.{len(cls.pods) + 1}"))
        services = {}
        for service in of_kind(cls.things, "Service"):
            found = [one for one in cls.pods if selects(service["spec"]["selector"], one.workload)]
            services[service["metadata"]["name"]] = found[0].ip
        cls.services = services
        for one in cls.pods:
            one.start(cls.things, services)

    @classmethod
    def tearDownClass(cls):
        for one in cls.pods:
            one.stop()
        shutil.rmtree(cls.folder)

    def ready(self, pods=None):
        for one in pods or self.pods:
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                answer = until(
                    lambda: f"{kind} of {one.name}: {one.probe(kind)}\n{one.log.read_text()[-2000:]}",
                    lambda: one.probe(kind)[0] == 200,
                )
                self.assertTrue(answer)


class Default(Installed):
    def ask(self):
        test = of_kind(self.things, "Pod")[0]
        words = [
            re.sub(r"^--server=([\w-]+):", lambda found: f"--server={self.services[found[1]]}:", word)
            for word in main_container(test)["args"]
        ]
        answer = subprocess.run([CASCADIA, *words], capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.assertTrue(json.loads(answer.stdout)["text"])

    def test_probes_hold_and_a_client_gets_its_answer(self):
        self.ready()
        self.ask()

    def test_pools_scale_on_metrics_that_their_nodes_serve(self):
        self.ready()
        self.ask()
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        for key, role in (("router", "router"), ("drafterDefaults", "drafter"), ("expertDefaults", "expert")):
            pages = [page(f"{one.ip}:9090", "/metrics")[1] for one in self.pods if component(one.workload) == role]
            for signal in values[key]["autoscaling"]["targets"]:
                metric = values["autoscaling"]["podMetrics"][signal]
                self.assertRegex("\n".join(pages), rf"(?m)^{metric}[ {{]")
                self.assertIn(metric + "{PODS}", values["autoscaling"]["queries"][signal])

    def test_every_declared_port_is_listened_on(self):
        self.ready()
        lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        listening = {endpoint(fields[1]) for fields in lines if fields[3] == "0A"}
        for one in self.pods:
            ours = {(one.ip, p["containerPort"]) for p in one.container["ports"]}
            self.assertLessEqual(ours, listening, one.name)

    def test_connections_are_the_policies_arrows(self):
        self.ready()
        by_ip = {one.ip: one for one in self.pods}
        arrows = {("router", "drafter"), ("router", "expert"), ("drafter", "expert")}
        arrows |= {(node, "etcd") for node in ("router", "drafter", "expert")}

        def opened():
            found = {}
            for one in self.pods:
                for address, number in one.connections():
                    if (far := by_ip.get(address)) and far is not one:
                        found[component(one.workload), component(far.workload)] = (one.workload, far.workload, number)
            return found

        # A drafter knows its experts by watching them.
        until(lambda: f"connections opened: {sorted(opened())}", lambda: set(opened()) >= arrows)
        for arrow, (near, far, number) in opened().items():
            self.assertIn(arrow, arrows)
            self.assertTrue(allowed(self.things, near, far, number), arrow)

    def test_what_is_no_arrow_is_forbidden(self):
        one_of = {component(thing): thing for thing in workloads(self.things)}
        one_of["test"] = of_kind(self.things, "Pod")[0]
        grpc, admin = 50051, 9090
        for near, far, number in [
            ("expert", "drafter", grpc), ("expert", "router", grpc), ("drafter", "router", admin),
            ("drafter", "drafter", grpc), ("expert", "expert", grpc), ("drafter", "expert", admin),
            ("etcd", "router", grpc), ("test", "expert", grpc), ("test", "router", admin), ("router", "etcd", 2380),
        ]:
            self.assertFalse(allowed(self.things, one_of[near], one_of[far], number), (near, far, number))
        self.assertTrue(allowed(self.things, one_of["test"], one_of["router"], 8080))
        self.assertTrue(allowed(self.things, one_of["router"], one_of["expert"], admin))


class Wrong(Installed):
    """A drafter of another tokenizer beside pools that serve."""

    ODD = [{"name": "main"}, {"name": "odd", "synthetic": "acceptance=0.8", "served": ["demo"]}]
    VALUES = ["--values", str(CHART / "ci/one-of-each.yaml"), "--set-json", f"drafters={json.dumps(ODD)}"]

    def test_it_is_not_ready_and_says_why_while_the_others_serve(self):
        odd = next(one for one in self.pods if "-drafter-odd-" in one.name)
        self.ready([one for one in self.pods if one is not odd])
        status, why = until(
            lambda: f"readiness: {odd.probe('readinessProbe')}",
            lambda: (answer := odd.probe("readinessProbe"))[0] == 503 and "tokenizer" in answer[1] and answer,
        )
        self.assertEqual(status, 503)
        self.assertIn(f"drafter {odd.name} and expert ", why)
        # A probe's event shows the status alone, so an operator looks at the log.
        until(lambda: f"the log: {odd.log.read_text()[-2000:]}", lambda: f"not ready: {why.split(': ')[1][:40]}" in odd.log.read_text())
        self.assertEqual(odd.probe("livenessProbe")[0], 200)


if __name__ == "__main__":
    unittest.main()
