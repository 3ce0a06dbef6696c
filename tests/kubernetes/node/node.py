"""One node of real Kubernetes in a network namespace of this machine: nothing comes in or goes out.

    node.py up FOLDER      starts it with the programs of FOLDER/bin (see `build`), its state in FOLDER/state
    node.py down FOLDER    stops what `up` started, and removes its state

Needs root, and from the distribution: containerd, runc, containernetworking-plugins, iptables, conntrack, openssl, gcc.
Programs run on the host; containerd runs the pods. One node, no storage classes, no registry: images are imported.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[2] / "deploy/image/pack"
SPACE = "cascadia-node"

# Ranges for benchmarks (RFC 2544), which no network has.
HOST, PODS, POD_RANGE, SERVICES, API = "198.18.255.1", "198.18.0.0/24", "198.18.0.0/17", "198.19.0.0/24", "198.19.0.1"

# `ip netns exec` would hide the mounts of cgroups from the kubelet.
INSIDE = ["nsenter", f"--net=/run/netns/{SPACE}"]

# All it ever does is wait, so that a pod's containers have something to share their namespaces with.
PAUSE = "#include <signal.h>\n#include <unistd.h>\nvoid end(int s) { _exit(s != 15); }\n" \
        "int main() { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }\n"


class Node:
    def __init__(self, folder):
        self.bin, self.state = folder / "bin", folder / "state"
        self.pki, self.logs, self.pids = self.state / "pki", self.state / "logs", self.state / "pids"
        self.admin = self.state / "admin.conf"
        self.ctr = ["ctr", "--address", str(self.state / "containerd.sock"), "--namespace", "k8s.io"]

    # What others are told.

    def environment(self):
        """The variables that tests/kubernetes/run reads."""
        return {
            "KUBECONFIG": self.admin, "KUBECTL": self.bin / "kubectl", "ENTER": " ".join(INSIDE),
            "LOAD": " ".join([*self.ctr, "images", "import"]),
            "KILL": " ".join([*self.ctr, "tasks", "kill", "--signal", "SIGKILL"]),
        }

    # The beginning.

    def up(self):
        for folder in (self.pki, self.logs, self.pids, self.state / "cni"):
            folder.mkdir(parents=True)
        network()
        self.certificates()
        self.control_plane()
        self.runtime()
        self.kubelet()
        self.names()
        self.start("policies", sys.executable, HERE / "policies.py", self.admin)
        self.start("metrics", sys.executable, HERE / "metrics.py", self.admin, 4445, self.pki / "server.crt", self.pki / "server.key")
        self.serves("custom.metrics.k8s.io", "v1beta2", 4445)
        if (self.bin / "keda-operator").exists():
            self.keda()
        self.wait("the node is ready", *self.kubectl("wait", "--for=condition=Ready", "node/node1", "--timeout=1s"))

    def start(self, name, *words, **more):
        with (self.logs / name).open("w") as log:
            process = subprocess.Popen(
                [*INSIDE, *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **more,
            )
        (self.pids / name).write_text(str(process.pid))

    def program(self, name, *words, **more):
        self.start(name, self.bin / name, *words, **more)

    def wait(self, what, *words):
        until = time.monotonic() + 90
        while subprocess.run([*INSIDE, *map(str, words)], capture_output=True).returncode:
            if time.monotonic() > until:
                sys.exit(f"not within 90 s: {what}; see {self.logs}")
            time.sleep(0.3)

    def kubectl(self, *words):
        return [self.bin / "kubectl", "--kubeconfig", self.admin, *words]

    def apply(self, *things):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": things})
        subprocess.run([*INSIDE, *map(str, self.kubectl("apply", "-f", "-"))], input=text, text=True, check=True,
                       stdout=subprocess.DEVNULL)

    # Its parts.

    def certificates(self):
        """An authority; the server, an administrator, the node and KEDA, whom it vouches for; a key for tokens."""
        authority = ["-x509", "-subj", "/CN=authority", "-out", "ca.crt", "-keyout", "ca.key"]
        self.openssl("req", "-newkey", "rsa:2048", "-nodes", "-days", "30", *authority)
        self.openssl("genrsa", "-out", "tokens.key", "2048")
        server = f"IP:{HOST},IP:127.0.0.1,IP:{API},DNS:kubernetes,DNS:kubernetes.default.svc"
        for name, subject, also in [
            ("server", "/CN=kube-apiserver", server),
            ("admin", "/O=system:masters/CN=admin", "DNS:admin"),
            ("node", "/O=system:nodes/CN=system:node:node1", "DNS:node"),
            ("tls", "/CN=keda-operator", f"IP:{HOST},IP:127.0.0.1,DNS:localhost,DNS:keda-operator"),
        ]:
            self.openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
            (self.pki / "also").write_text(f"subjectAltName={also}\n")
            signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "also"]
            self.openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
        for who in ("admin", "node"):
            user = {"client-certificate": f"{self.pki}/{who}.crt", "client-key": f"{self.pki}/{who}.key"}
            cluster = {"server": f"https://{HOST}:6443", "certificate-authority": f"{self.pki}/ca.crt"}
            (self.state / f"{who}.conf").write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "node",
                "clusters": [{"name": "node", "cluster": cluster}], "users": [{"name": who, "user": user}],
                "contexts": [{"name": "node", "context": {"cluster": "node", "user": who}}],
            }))

    def openssl(self, *words):
        subprocess.run(["openssl", *words], cwd=self.pki, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def control_plane(self):
        own = ["http://127.0.0.1:2379", "http://127.0.0.1:2380"]
        self.program("etcd", "--data-dir", self.state / "etcd", "--listen-client-urls", own[0], "--advertise-client-urls", own[0],
                     "--listen-peer-urls", own[1], "--initial-advertise-peer-urls", own[1], "--initial-cluster", f"default={own[1]}")
        p = self.pki
        self.program(
            "kube-apiserver", f"--etcd-servers={own[0]}", f"--advertise-address={HOST}", "--secure-port=6443",
            f"--service-cluster-ip-range={SERVICES}", "--authorization-mode=Node,RBAC", "--allow-privileged=true",
            f"--tls-cert-file={p}/server.crt", f"--tls-private-key-file={p}/server.key", f"--client-ca-file={p}/ca.crt",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={p}/tokens.key",
            f"--service-account-signing-key-file={p}/tokens.key", "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={p}/admin.crt", f"--kubelet-client-key={p}/admin.key",
            # Aggregated APIs (KEDA's) know by this who asks.
            f"--proxy-client-cert-file={p}/admin.crt", f"--proxy-client-key-file={p}/admin.key",
            f"--requestheader-client-ca-file={p}/ca.crt", "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--enable-aggregator-routing=true",
        )
        self.wait("the API answers", *self.kubectl("get", "--raw", "/readyz"))
        self.program(
            "kube-controller-manager", f"--kubeconfig={self.admin}", f"--service-account-private-key-file={p}/tokens.key",
            f"--root-ca-file={p}/ca.crt", "--use-service-account-credentials=true", "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_RANGE}", f"--service-cluster-ip-range={SERVICES}", "--leader-elect=false",
            "--horizontal-pod-autoscaler-sync-period=5s",
        )
        self.program("kube-scheduler", f"--kubeconfig={self.admin}", "--leader-elect=false")

    def runtime(self):
        state = self.state
        (state / "cni/pods.conflist").write_text(json.dumps({
            "cniVersion": "0.4.0", "name": SPACE,
            "plugins": [{"type": "bridge", "bridge": "pods0", "isGateway": True, "hairpinMode": True, "ipam": {
                "type": "host-local", "dataDir": f"{state}/addresses", "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}]}}],
        }))
        (state / "containerd.toml").write_text(f"""version = 2
root = "{state}/containerd"
state = "{state}/containerd-run"
[grpc]
address = "{state}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/pause:node"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{state}/cni"
""")
        self.start("containerd", "containerd", "--config", state / "containerd.toml")
        subprocess.run(["gcc", "-xc", "-Os", "-static", "-o", state / "pause", "-"], input=PAUSE, text=True, check=True)
        (state / "pause.contents").write_text(f"0755 /pause {state}/pause\n")
        (state / "pause.Dockerfile").write_text('FROM scratch\nFROM scratch\nUSER 65532\nENTRYPOINT ["/pause"]\n')
        subprocess.run([PACK, "--contents", state / "pause.contents", "--dockerfile", state / "pause.Dockerfile", "archive",
                        state / "pause.tar", "docker.io/library/pause:node"], check=True, stdout=subprocess.DEVNULL)
        self.wait("containerd takes the pause image", *self.ctr, "images", "import", state / "pause.tar")

    def kubelet(self):
        (self.state / "kubelet.json").write_text(json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{self.pki}/ca.crt"}},
            "authorization": {"mode": "Webhook"}, "cgroupDriver": "cgroupfs", "failCgroupV1": False, "failSwapOn": False,
            "enforceNodeAllocatable": [], "containerRuntimeEndpoint": f"unix://{self.state}/containerd.sock",
            "clusterDNS": [HOST], "clusterDomain": "cluster.local", "resolvConf": "",
            # Nobody could bring an image again that the kubelet removed because the disk is full.
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }))
        self.program("kubelet", f"--config={self.state}/kubelet.json", f"--kubeconfig={self.state}/node.conf",
                     "--hostname-override=node1", f"--node-ip={HOST}", f"--root-dir={self.state}/kubelet",
                     f"--cert-dir={self.state}/kubelet-pki")
        self.program("kube-proxy", f"--kubeconfig={self.admin}", "--proxy-mode=iptables", f"--cluster-cidr={POD_RANGE}",
                     "--hostname-override=node1", "--conntrack-max-per-core=0")

    def names(self):
        corefile = f".:53 {{\n bind {HOST}\n kubernetes cluster.local {{\n  kubeconfig {self.admin} node\n }}\n}}\n"
        (self.state / "Corefile").write_text(corefile)
        self.program("coredns", "-conf", self.state / "Corefile")

    def keda(self):
        """KEDA's operator and its adapter, which serves external metrics to the autoscaler."""
        crds = self.bin / "keda-crds"
        command = [*INSIDE, *self.kubectl("apply", "--server-side", "-f", crds)]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}})
        environment = {**os.environ, "KUBECONFIG": str(self.admin), "WATCH_NAMESPACE": "", "POD_NAME": "keda",
                       "POD_NAMESPACE": "keda", "KEDA_CLUSTER_OBJECT_NAMESPACE": "keda"}
        certificates = f"--cert-dir={self.pki}"
        self.program("keda-operator", certificates, "--metrics-bind-address=127.0.0.1:18080", "--leader-elect=false",
                     "--health-probe-bind-address=127.0.0.1:18081", "--metrics-service-bind-address=127.0.0.1:9666",
                     "--enable-webhook-patching=false", "--enable-apiservice-patching=false", env=environment)
        self.program("keda-adapter", "--secure-port=4444", "--port=18082", certificates, f"--lister-kubeconfig={self.admin}",
                     f"--authentication-kubeconfig={self.admin}", f"--authorization-kubeconfig={self.admin}",
                     "--metrics-service-address=localhost:9666", env=environment)
        self.serves("external.metrics.k8s.io", "v1beta1", 4444)

    def serves(self, group, version, port):
        """A group of the API that a program on this machine answers for."""
        service = {"name": group.split(".")[0], "namespace": "kube-system"}
        labels = {"kubernetes.io/service-name": service["name"]}
        self.apply(
            {"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": {"ports": [{"port": 443, "targetPort": port}]}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": port}],
             "metadata": {**service, "labels": labels}, "endpoints": [{"addresses": [HOST]}]},
            {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": f"{version}.{group}"},
             "spec": {"group": group, "version": version, "service": service, "insecureSkipTLSVerify": True,
                      "groupPriorityMinimum": 100, "versionPriority": 100}},
        )

    # The end.

    def down(self):
        if not self.state.exists():
            return
        runtime = [self.pids / name for name in ("containerd", "etcd")]
        first = [pid for pid in self.pids.iterdir() if pid not in runtime] if self.pids.exists() else []
        for pid in first:
            end(pid)
        tasks = subprocess.run([*self.ctr, "tasks", "ls", "-q"], capture_output=True, text=True).stdout.split()
        for task in tasks:
            subprocess.run([*self.ctr, "tasks", "delete", "--force", task], capture_output=True)
        for pid in runtime:
            end(pid)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self.state}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], capture_output=True)
        self.namespaces()
        shutil.rmtree(self.state)

    def namespaces(self):
        """The pods' network namespaces, which the node's addresses name, and the node's own."""
        for space in Path("/run/netns").glob("cni-*"):
            shown = subprocess.run(["ip", "netns", "exec", space.name, "ip", "-4", "address"], capture_output=True, text=True)
            if f"inet {PODS.rsplit('.', 1)[0]}." in shown.stdout:
                subprocess.run(["ip", "netns", "delete", space.name], capture_output=True)
        subprocess.run(["ip", "netns", "delete", SPACE], capture_output=True)


def network():
    """A namespace with an address of its own, whose default route leads nowhere."""
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    for words in (
        "ip link set lo up", "ip link add node0 type veth peer name node1", f"ip address add {HOST}/32 dev node0",
        "ip link set node0 up", "ip link set node1 up", "ip route add default dev node0", "sysctl -qw net.ipv4.ip_forward=1",
        # Or pods of one bridge would meet without passing the rules of Services and policies.
        "sysctl -qw net.bridge.bridge-nf-call-iptables=1",
    ):
        subprocess.run([*INSIDE, *words.split()], check=True)


def end(pidfile):
    """Ends a process that `up` started, and sees it gone."""
    if not pidfile.exists():
        return
    pid = int(pidfile.read_text())
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        if runs(pid):
            os.kill(pid, sign)
        until = time.monotonic() + patience
        while runs(pid) and time.monotonic() < until:
            time.sleep(0.05)


def runs(pid):
    """Whether a process is there, and not only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        sys.exit(__doc__)
    if os.geteuid():
        sys.exit("error: a node needs namespaces, cgroups and mounts: run this as root, or name a cluster with KUBECONFIG")
    node = Node(Path(sys.argv[2]).resolve())
    if sys.argv[1] == "down":
        return node.down()
    if node.state.exists():
        sys.exit(f"error: {node.state} exists: a node runs, or one was not taken down; `{sys.argv[0]} down {sys.argv[2]}` does")
    node.up()
    for name, value in node.environment().items():
        print(f"export {name}='{value}'")


if __name__ == "__main__":
    main()
