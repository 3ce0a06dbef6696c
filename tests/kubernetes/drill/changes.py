"""Steps that change the cluster while it is used: no request may fail, no stream break, no text differ."""

import json
import time

from cluster import (
    RELEASE, Broken, install, is_ready, kubectl, name, nodes, objects, pods, ready_pods, scale, settled, until,
)
from values import UPGRADED, merged, pools

# By when each node has renewed its lease, or found that there is none.
LEASE_SECONDS = 15


def deployment(component, pool=None):
    return name(objects("deployments", component=component, pool=pool)[0])


def scale_a_pool(component):
    def step():
        target = deployment(component, "pace")
        scale(target, 3)
        grown = len(ready_pods(component, "pace"))
        scale(target, 2)
        return f"2, {grown}, {len(ready_pods(component, 'pace'))} pods"

    return step


def upgrade():
    """Every pod but etcd's is another one after."""
    before = {name(pod) for pod in nodes()}
    install(UPGRADED)
    settled(300)
    after = nodes()
    kept = sorted(name(pod) for pod in after if name(pod) in before and "etcd" not in name(pod))
    if kept:
        raise Broken(f"still there: {', '.join(kept)}")
    images = {pod["spec"]["containers"][0]["image"] for pod in after}
    return f"{len(after)} pods, of {', '.join(sorted(i.rsplit('/', 1)[-1] for i in images))}"


def new_model():
    """A second version beside the first, under the same name."""
    install(merged(UPGRADED, pools(("pace", 1), ("pace-2", 2))))
    settled(300)
    return "pace and pace-2 serve one name"


def old_model_goes():
    install(merged(UPGRADED, pools(("pace-2", 2))))
    until("the first version's pods are gone", lambda: not pods("expert", "pace") + pods("drafter", "pace"), 180)
    settled(300)
    return "pace-2 alone"


def first_model_again():
    install(merged(UPGRADED, pools(("pace", 1), ("pace-2", 2))))
    settled(300)
    install(UPGRADED)
    settled(300)
    return "pace alone"


def restart(kind):
    def step():
        targets = [name(thing) for thing in objects("deployments", component=kind)]
        kubectl("rollout", "restart", *(f"deployment/{target}" for target in targets))
        for target in targets:
            kubectl("rollout", "status", f"deployment/{target}", "--timeout=300s")
        settled(300)
        return f"{len(targets)} deployments"

    return step


def evict(pod):
    """What the eviction API says: whether it lets the pod go."""
    wish = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name(pod)}}
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{name(pod)}/eviction"
    ran = kubectl("create", "--raw", path, "-f", "-", input=json.dumps(wish), check=False)
    if ran.returncode and "disruption budget" not in ran.stderr:
        raise Broken(f"eviction of {name(pod)}: {ran.stderr.strip()}")
    return ran.returncode == 0


def evictions():
    """Every pod that a PodDisruptionBudget guards, as `kubectl drain` would: all at once, again until none is left."""
    left = {name(pod): pod for pod in nodes() if pod["metadata"]["labels"]["app.kubernetes.io/component"] != "etcd"}
    number, refused = len(left), 0

    def once_more():
        nonlocal refused
        there = {name(pod) for pod in nodes()}
        for pod in [pod for one, pod in left.items() if one in there]:
            if evict(pod):
                left.pop(name(pod))
            else:
                refused += 1
        for gone in set(left) - there:
            left.pop(gone)
        return not left

    until(lambda: f"evicted: {', '.join(left)}", once_more, 300, 2)
    if not refused:
        raise Broken("no eviction was ever refused: the budgets guard nothing")
    settled(300)
    return f"{number} pods went, {refused} times one had to wait for another"


def restart_etcd():
    target = f"statefulset/{RELEASE}-cascadia-etcd"
    kubectl("rollout", "restart", target)
    kubectl("rollout", "status", target, "--timeout=120s")
    settled()
    return registered_again()


def lose_etcd():
    """The member and its volume go at once; the next one knows nothing."""
    victim = ready_pods("etcd")[0]
    kubectl("delete", "pod", name(victim), "--grace-period=0", "--force")
    until("another etcd is ready", lambda: [p for p in ready_pods("etcd") if uid(p) != uid(victim)])
    return registered_again()


def uid(pod):
    return pod["metadata"]["uid"]


def registered_again():
    """An etcd that began with nothing knows every node again, as a router that begins with nothing sees."""
    # A router that starts before all have told it again waits for the drafters of the models it knows; of models whose
    # experts it has not seen it knows nothing, and refuses them.
    time.sleep(LEASE_SECONDS)
    target = deployment("router")
    kubectl("rollout", "restart", f"deployment/{target}")
    settled(180)
    expected = {name(pod) for pod in nodes() if is_ready(pod) and "etcd" not in name(pod)}

    def missing():
        status = kubectl("exec", f"deployment/{target}", "--", "cascadia", "status", "--json")
        return expected - {member["id"] for member in json.loads(status)["members"]}

    until(lambda: f"in a new router's list: {', '.join(sorted(missing()))}", lambda: not missing(), 60)
    return f"{len(expected)} nodes are known to new routers"

