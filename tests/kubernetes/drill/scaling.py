"""Autoscaling on real signals, and only the pool that is short grows: Prometheus scrapes the pods and KEDA asks it, or the
autoscaler asks an adapter for the pods' own metrics."""

import json
import os
import subprocess
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from cluster import (
    KUBECTL, NAMESPACE, Broken, command, install, name, nodes, objects, ready_pods, service, settled, until,
)
from manifests import BUILT
from pages import page
from values import image, merged, pool

# A Prometheus that scrapes the pods and that KEDA reaches; without one, ours, which KEDA on this machine reaches.
PROMETHEUS = os.environ.get("PROMETHEUS")
OURS = "127.0.0.1:19090"

# Debian's Prometheus is built without Kubernetes' service discovery: it reads a file that is written here.
CONFIG = """
global: {scrape_interval: 2s, scrape_timeout: 2s}
scrape_configs: [{job_name: cascadia, file_sd_configs: [{files: [FOLDER/pods.json], refresh_interval: 2s}]}]
"""

# Each pool's capacity is its pace: the time of a pass, and of each further row in it.
SHORT_DRAFTERS = "acceptance=0.8,length=none,drafter.step=30ms,expert.step=5ms"
SHORT_EXPERTS = "acceptance=0.8,length=none,drafter.step=2ms,expert.step=40ms,expert.token=4ms"

# Sessions a drafter, blocks that wait at an expert: of the drill's small load, so that a few streams are many.
TARGETS = {"drafter": {"sessions": 8}, "expert": {"queue": 3}}
FEW, MANY = 2, 3


class Prometheus:
    """The scraper, for as long as a step lasts."""

    def __enter__(self):
        if PROMETHEUS:
            return self
        self.temporary = tempfile.TemporaryDirectory()
        self.folder, self.ended = Path(self.temporary.name), threading.Event()
        (self.folder / "prometheus.yml").write_text(CONFIG.replace("FOLDER", str(self.folder)))
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data",
             f"--web.listen-address={OURS}", "--log.level=error"],
        )
        self.following = threading.Thread(target=self.follow)
        self.following.start()
        until("Prometheus is ready", lambda: page(OURS, "/-/ready")[0] == 200, 30)
        return self

    def follow(self):
        """Names the pods as a PodMonitor does."""
        while not self.ended.wait(1):
            found = [pod for pod in nodes() if pod["status"].get("podIP") and "etcd" not in name(pod)]
            targets = [{"targets": [f"{pod['status']['podIP']}:9090"], "labels": {"namespace": NAMESPACE, "pod": name(pod)}}
                       for pod in found]
            (self.folder / "new.json").write_text(json.dumps(targets))
            (self.folder / "new.json").rename(self.folder / "pods.json")

    def __exit__(self, *_):
        if not PROMETHEUS:
            self.ended.set()
            self.following.join()
            self.process.terminate()
            self.process.wait()
            self.temporary.cleanup()


def values(synthetic, kind):
    """Two pools that scale, of a set capacity; windows as short as a drill wants them."""
    scaled = {role: {"autoscaling": {"enabled": True, "min": FEW, "max": MANY, "targets": TARGETS[role]}} for role in TARGETS}
    return merged(image(), {
        "drafters": [pool("main", synthetic, "pace")], "experts": [pool("main", synthetic, "pace")],
        "drafterDefaults": scaled["drafter"], "expertDefaults": scaled["expert"],
        "networkPolicy": {"monitoring": [{"podSelector": {}}]},
        "autoscaling": {"kind": kind, "prometheus": PROMETHEUS or f"http://{OURS}", "pollingSeconds": 5, "upSeconds": 5, "downSeconds": 20},
    })


def replicas(component):
    return objects("deployments", component=component)[0]["spec"]["replicas"]


def streams(count):
    """So many streams at any time, through the Service, until it is terminated."""
    return subprocess.Popen(
        [BUILT / "release/cascadia", "bench", f"--server={service('grpc')}", "--model=pace",
         f"--concurrency={count}", "--duration=10m", "--output-len=400", "--input-len=32"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )


def needs(kind):
    """Says what is missing for a kind of autoscaling."""
    if kind == "hpa":
        if "custom.metrics.k8s.io/" not in command([KUBECTL, "api-versions"]):
            raise Broken("the cluster serves no custom metrics; install an adapter, or leave this out with --no-scaling")
        return
    if not PROMETHEUS and command(["sh", "-c", "command -v prometheus"], check=False).returncode:
        raise Broken("no prometheus on the PATH; `tools/test` brings one, or PROMETHEUS names one that scrapes the pods")
    if "scaledobjects" not in command([KUBECTL, "api-resources", "--api-group=keda.sh", "-o", "name"]):
        raise Broken("the cluster has no KEDA; install KEDA 2.21, or leave this out with --no-scaling")


def short(component, other, synthetic, count, kind="keda"):
    """Load that one pool is too small for: it grows, the other does not, and quiet takes it back."""

    def step():
        needs(kind)
        with Prometheus() if kind == "keda" else nullcontext():
            install(values(synthetic, kind))
            until(lambda: f"{FEW} pods of each", lambda: {replicas(component), replicas(other)} == {FEW}, 120, 1)
            settled()
            load = streams(count)
            try:
                began = time.monotonic()
                watch(component, other, MANY, 180)
                grew = time.monotonic() - began
                until("the new pod is ready", lambda: len(ready_pods(component)) == MANY, 60)
            finally:
                ended = load.poll()
                load.terminate()
                said = load.communicate()[1]
            if ended is not None:
                raise Broken(f"the load ended by itself: {said.strip()[-300:]}")
            began = time.monotonic()
            watch(component, other, FEW, 240)
            shrank = time.monotonic() - began
            settled()
        return f"{count} streams: {FEW} to {MANY} {component}s in {grew:.0f} s, back {shrank:.0f} s after; {other}s stayed {FEW}"

    return step


def watch(component, other, want, seconds):
    """Waits until a pool has a size; the other must not change meanwhile."""

    def reached():
        if replicas(other) != FEW:
            raise Broken(f"{other}s, which are not short, are {replicas(other)}")
        return replicas(component) == want

    until(lambda: f"{want} {component}s, there are {replicas(component)}", reached, seconds, 1)


STEPS = [
    ("autoscaling: drafters are short", short("drafter", "expert", SHORT_DRAFTERS, 20)),
    ("autoscaling: experts are short", short("expert", "drafter", SHORT_EXPERTS, 12)),
    ("autoscaling by pod metrics: drafters are short", short("drafter", "expert", SHORT_DRAFTERS, 20, "hpa")),
]
