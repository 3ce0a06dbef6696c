"""Steps at the beginning and the end: a default installation, what it takes, and what it leaves."""

import json
import threading
import time
import urllib.request

import openai

from cluster import (
    NAMESPACE, RELEASE, Broken, base_url, command, helm, install, kubectl, KUBECTL, name, nodes, objects, pods, settled,
    until,
)
from pages import page
from values import LOADED, image, merged, pools

QUESTION = "Mia has 7 apples. She buys 5 more. How many apples does Mia have now?"

# What Kubernetes itself puts into a namespace, and what passes by itself.
KUBERNETES_OWN = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
PASSING = {"events", "events.events.k8s.io", "pods.metrics.k8s.io", "bindings", "localsubjectaccessreviews.authorization.k8s.io"}


def namespace():
    """A namespace that admits restricted pods and no others."""
    command([KUBECTL, "delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s"])
    command([KUBECTL, "create", "namespace", NAMESPACE])
    command([KUBECTL, "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"])
    version = json.loads(command([KUBECTL, "version", "-o", "json"]))["serverVersion"]["gitVersion"]
    return f"Kubernetes {version}, pod security restricted"


def first_token(began, found):
    """Asks the Service, from before it exists, until a token comes; adds the seconds since `began`."""
    body = json.dumps({"model": "demo", "prompt": QUESTION, "max_tokens": 4, "stream": True}).encode()
    while not found and time.monotonic() < began + 300:
        try:
            url = base_url()
            wish = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
            with urllib.request.urlopen(wish, timeout=10) as answer:
                if answer.readline():
                    found.append(time.monotonic() - began)
        except (OSError, LookupError):
            time.sleep(0.2)


def installed():
    """`helm install --wait` with nothing but the image's tag."""
    began, token = time.monotonic(), []
    asking = threading.Thread(target=first_token, args=(began, token))
    asking.start()
    install(image(), verb="install")
    took = time.monotonic() - began
    asking.join()
    settled()
    if not token:
        raise Broken("no token came within 300 s")
    return f"{len(nodes())} pods ready after {took:.1f} s, the first token after {token[0]:.1f} s"


def helm_test():
    helm("test", RELEASE, "--timeout", "2m")


def client_answers():
    """The official client, through the Service: what exists, a whole answer, and the same one streamed."""
    client = openai.OpenAI(base_url=f"{base_url()}/v1", api_key="none", max_retries=0, timeout=60)
    models = [model.id for model in client.models.list().data]
    wish = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "seed": 1, "temperature": 0.8}
    whole = client.chat.completions.create(**wish).choices[0].message.content
    streamed = "".join(c.delta.content or "" for chunk in client.chat.completions.create(**wish, stream=True) for c in chunk.choices)
    if not whole or whole != streamed:
        raise Broken(f"whole {whole!r}, streamed {streamed!r}")
    return f"models {models}; {whole.strip()[-40:]!r}"


def arrows():
    """A pod that is no part of the release reaches routers' clients' port, and nobody else."""
    ports = {"router": 50051, "drafter": 50051, "expert": 50051, "etcd": 2379}
    release_image = pods("router")[0]["spec"]["containers"][0]["image"]
    forbidden = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    containers = [
        {"name": component, "image": release_image, "securityContext": forbidden,
         "args": ["status", f"--server={pods(component)[0]['status']['podIP']}:{port}"]}
        for component, port in ports.items()
    ]
    restricted = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    stranger = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"},
                "spec": {"restartPolicy": "Never", "securityContext": restricted, "containers": containers}}
    kubectl("apply", "-f", "-", input=json.dumps(stranger))
    phase = ["get", "pod", "stranger", "-o", "jsonpath={.status.phase}"]
    until("the stranger has ended", lambda: kubectl(*phase) in ("Failed", "Succeeded"), 60)
    said = {component: kubectl("logs", "stranger", "-c", component) for component in ports}
    kubectl("delete", "pod", "stranger")
    if "ready" not in said.pop("router"):
        raise Broken("a stranger was not answered by a router")
    let_in = [component for component, text in said.items() if "deadline has elapsed" not in text]
    if let_in:
        raise Broken(f"a stranger reached {let_in}; does the cluster's network enforce NetworkPolicies?")
    return f"a stranger reached a router, and not {', '.join(said)}"


def footprint():
    """What the default installation asks for and takes at rest; the image's size is printed when it is packed."""
    milli = 0
    for thing in objects("deployments,statefulsets"):
        requests = [c["resources"]["requests"]["cpu"] for c in thing["spec"]["template"]["spec"]["containers"]]
        surge = thing["kind"] == "Deployment"
        milli += (thing["spec"]["replicas"] + surge) * sum(map(milli_cores, requests))
    rest = {}
    for pod in nodes():
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        port = 2381 if component == "etcd" else 9090
        text = page(f"{pod['status']['podIP']}:{port}", "/metrics")[1]
        memory = [row.split()[1] for row in text.splitlines() if row.startswith("process_resident_memory_bytes")]
        rest.setdefault(component, []).append(f"{float(memory[0]) / 2**20:.0f}" if memory else "unseen")
    said = ", ".join(f"{component} {'/'.join(sizes)}" for component, sizes in sorted(rest.items()))
    return f"CPU requests with rolling surge {milli}m; MiB at rest: {said}"


def milli_cores(quantity):
    return int(quantity[:-1]) if quantity.endswith("m") else int(float(quantity) * 1000)


def add_pools(load):
    """Both versions of the paced pair, one after the other on an idle cluster, so that the texts of each are known."""
    install(merged(image(), pools(("pace-2", 2))))
    settled()
    load.learn()
    install(LOADED)
    until("the second version's pods are gone", lambda: not pods("expert", "pace-2") + pods("drafter", "pace-2"))
    settled()
    return load.learn()


def uninstall():
    """What is left of the release, of every kind there is; the namespace goes after."""
    helm("uninstall", RELEASE, "--wait", "--timeout", "3m")
    kinds = command([KUBECTL, "api-resources", "--namespaced", "--verbs=list", "-o", "name"]).split()
    asked = ",".join(kind for kind in kinds if kind not in PASSING)

    def left():
        names = set(kubectl("get", asked, "-o", "name", "--ignore-not-found").split())
        return {one for one in names if one not in KUBERNETES_OWN}

    until(lambda: f"gone: {', '.join(sorted(left()))}", lambda: not left(), 60, 2)
    command([KUBECTL, "delete", "namespace", NAMESPACE, "--timeout=120s"])
    return f"nothing is left, of {len(kinds)} kinds"


INSTALLED = [
    ("a namespace of its own", namespace),
    ("helm install with default values --wait", installed),
    ("helm test", helm_test),
    ("OpenAI's client through the Service", client_answers),
    ("only the architecture's arrows pass", arrows),
    ("the footprint at rest", footprint),
]
