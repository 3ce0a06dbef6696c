"""Enforces NetworkPolicies on our node, whose bridge does not: policies.py ADMIN.CONF, until it is ended.

Understands what the chart's policies say: pods of the same namespace by their labels, TCP and UDP ports by number or name,
both directions; anything else ends it with an error. As everywhere, the node itself (probes, and what the drill asks from
there) is let through.
"""

import json
import ssl
import subprocess
import sys
import time
from http.client import HTTPSConnection
from pathlib import Path

PERIOD = 1


class Api:
    """The API server, over one connection that is kept."""

    def __init__(self, config):
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        self.connection = HTTPSConnection(cluster["server"].split("//")[1], context=context, timeout=10)

    def list(self, path):
        self.connection.request("GET", path)
        return json.load(self.connection.getresponse())["items"]


def selected(selector, pod):
    if set(selector) - {"matchLabels"}:
        sys.exit(f"selectors by {sorted(selector)} are not understood here")
    return selector.get("matchLabels", {}).items() <= pod["metadata"].get("labels", {}).items()


def home(thing):
    return thing["metadata"]["namespace"]


def numbers(entry, listeners):
    """The numbers of a rule's port, which may be a name that each listener has a number for."""
    if isinstance(entry["port"], int):
        return {entry["port"]}
    ports = (port for pod in listeners for c in pod["spec"]["containers"] for port in c.get("ports", []))
    return {port["containerPort"] for port in ports if port.get("name") == entry["port"]}


def rules(pods, policies):
    """What iptables is told: a chain for each pod and direction that some policy speaks of."""
    lines = ["-A POLICIES -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"]
    chains = ["POLICIES"]
    for direction, peers, near, far in (("Ingress", "from", "-d", "-s"), ("Egress", "to", "-s", "-d")):
        for pod in pods:
            address = pod["status"]["podIP"]
            mine = [p for p in policies if home(p) == home(pod) and direction in p["spec"]["policyTypes"]
                    and selected(p["spec"]["podSelector"], pod)]
            if not mine:
                continue
            chain = f"{direction[0]}-{address}"
            chains.append(chain)
            lines.append(f"-A POLICIES {near} {address} -j {chain}")
            for rule in (rule for policy in mine for rule in policy["spec"].get(direction.lower()) or []):
                others = [q for q in pods if home(q) == home(pod)
                          and any(selected(only(peer, "podSelector"), q) for peer in rule.get(peers, []))]
                ends = [f"{far} {q['status']['podIP']}" for q in others] if peers in rule else [""]
                listeners = [pod] if direction == "Ingress" else others or pods
                for entry in rule.get("ports", []):
                    protocol = entry.get("protocol", "TCP").lower()
                    for number in sorted(numbers(entry, listeners)):
                        lines += [f"-A {chain} {end} -p {protocol} --dport {number} -j RETURN" for end in ends]
            lines.append(f"-A {chain} -j DROP")
    return [f":{chain} - [0:0]" for chain in chains] + lines


def only(peer, key):
    if set(peer) != {key}:
        sys.exit(f"peers by {sorted(peer)} are not understood here")
    return peer[key]


def apply(lines):
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    subprocess.run(["iptables-restore", "--noflush"], input=text, text=True, check=True)
    if subprocess.run(["iptables", "-C", "FORWARD", "-j", "POLICIES"], capture_output=True).returncode:
        subprocess.run(["iptables", "-I", "FORWARD", "1", "-j", "POLICIES"], check=True)


def main():
    api, last = Api(json.loads(Path(sys.argv[1]).read_text())), None
    while True:
        pods = [pod for pod in api.list("/api/v1/pods") if pod["status"].get("podIP")
                and pod["status"]["phase"] in ("Pending", "Running") and not pod["spec"].get("hostNetwork")]
        now = rules(pods, api.list("/apis/networking.k8s.io/v1/networkpolicies"))
        if now != last:
            apply(now)
            last = now
        time.sleep(PERIOD)


if __name__ == "__main__":
    main()
