"""The chart, judged by what helm renders of it: valid for Kubernetes, one with itself, and refusing what cannot be meant."""

import copy
import json
import unittest

import jsonschema
import kubernetes_validate
import yaml

from manifests import (
    CHART, REPOSITORY, helm, main_container, named, of_kind, pod, pod_labels, port, render, selects, workloads,
)

OLDEST, NEWEST = "1.30", "1.37"
CASES = sorted((CHART / "ci").glob("*.yaml"))

# Kinds that other projects define; Kubernetes' own schemas do not know them.
FOREIGN = {"ScaledObject", "PodMonitor", "PrometheusRule", "HTTPRoute"}


def cases():
    for case in CASES:
        yield case.stem, render("--values", case)


class Rendering(unittest.TestCase):
    def test_there_are_cases_from_nothing_to_everything(self):
        self.assertGreaterEqual(len(CASES), 12)

    def test_lint(self):
        for case in CASES:
            with self.subTest(case.stem):
                answer = helm("lint", "--strict", CHART, "--values", case, "--kube-version", "1.34")
                self.assertEqual(answer.returncode, 0, answer.stdout + answer.stderr)

    def test_kubernetes_takes_every_object(self):
        for case, things in cases():
            for version in (OLDEST, NEWEST):
                for thing in things:
                    if thing["kind"] in FOREIGN:
                        continue
                    with self.subTest(case, object=named(thing), version=version):
                        kubernetes_validate.validate(thing, version, strict=True)

    def test_names_are_unique_and_short_enough(self):
        for case, things in cases():
            with self.subTest(case):
                names = [named(thing) for thing in things]
                self.assertEqual(len(names), len(set(names)))
                self.assertLessEqual(max(len(thing["metadata"]["name"]) for thing in things), 63)


class Agreement(unittest.TestCase):
    """What refers to something finds it."""

    def test_each_selector_finds_one_workload(self):
        for case, things in cases():
            for thing in workloads(things):
                with self.subTest(case, object=named(thing)):
                    found = [w for w in workloads(things) if selects(thing["spec"]["selector"]["matchLabels"], w)]
                    self.assertEqual(found, [thing])
            for thing in of_kind(things, "Service", "PodDisruptionBudget"):
                with self.subTest(case, object=named(thing)):
                    selector = thing["spec"]["selector"]
                    found = [w for w in workloads(things) if selects(selector.get("matchLabels", selector), w)]
                    self.assertEqual(len(found), 1)
                    for entry in thing["spec"].get("ports", []):
                        port(main_container(found[0]), entry["targetPort"])

    def test_each_pod_has_its_volumes_secrets_and_account(self):
        for case, things in cases():
            made = {named(thing) for thing in things}
            values = yaml.safe_load((CHART / f"ci/{case}.yaml").read_text()) or {}
            for thing in workloads(things) + of_kind(things, "Pod"):
                with self.subTest(case, object=named(thing)):
                    spec = pod(thing)
                    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
                    claimed = thing["spec"].get("volumeClaimTemplates", [])
                    names = set(volumes) | {claim["metadata"]["name"] for claim in claimed}
                    for container in spec["containers"] + spec.get("initContainers", []):
                        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
                        self.assertLessEqual(mounted, names)
                        for entry in container.get("env", []):
                            secret = entry.get("valueFrom", {}).get("secretKeyRef")
                            # What the values name is the operator's own.
                            if secret and secret["name"] not in (CHART / f"ci/{case}.yaml").read_text():
                                self.assertIn(f"Secret {secret['name']}", made)
                    for volume in volumes.values():
                        if "configMap" in volume:
                            self.assertIn(f"ConfigMap {volume['configMap']['name']}", made)
                        claim = volume.get("persistentVolumeClaim", {}).get("claimName", "")
                        if claim.endswith("-cache"):
                            self.assertIn(f"PersistentVolumeClaim {claim}", made)
                    if values.get("serviceAccount", {}).get("create", True):
                        self.assertIn(f"ServiceAccount {spec['serviceAccountName']}", made)

    def test_scaling_has_one_master(self):
        for case, things in cases():
            scaled = {t["spec"]["scaleTargetRef"]["name"] for t in of_kind(things, "ScaledObject", "HorizontalPodAutoscaler")}
            for thing in of_kind(things, "Deployment"):
                with self.subTest(case, object=named(thing)):
                    self.assertEqual("replicas" not in thing["spec"], thing["metadata"]["name"] in scaled)

    def test_grace_covers_the_longest_request(self):
        for case, things in cases():
            values = yaml.safe_load((CHART / f"ci/{case}.yaml").read_text()) or {}
            request = values.get("requestSeconds", 600)
            for thing in of_kind(things, "Deployment"):
                with self.subTest(case, object=named(thing)):
                    limits = {a.split("=")[0]: a.split("=")[1] for a in main_container(thing)["args"] if "=" in a}
                    before = main_container(thing).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
                    left = pod(thing)["terminationGracePeriodSeconds"] - before - int(limits.get("--lame-duck-ms", 0)) / 1000
                    self.assertGreaterEqual(left, request + 15)
                    if "--grace-seconds" in limits:
                        own = int(limits["--grace-seconds"])
                        self.assertTrue(request <= own < left)

    def test_pods_are_restricted(self):
        for case, things in cases():
            for thing in workloads(things) + of_kind(things, "Pod"):
                with self.subTest(case, object=named(thing)):
                    spec = pod(thing)
                    self.assertFalse(spec["automountServiceAccountToken"])
                    self.assertFalse(spec["enableServiceLinks"])
                    self.assertTrue(spec["securityContext"]["runAsNonRoot"])
                    self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                    for container in spec["containers"] + spec.get("initContainers", []):
                        security = container["securityContext"]
                        self.assertFalse(security["allowPrivilegeEscalation"])
                        self.assertTrue(security["readOnlyRootFilesystem"])
                        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
                        self.assertIn("memory", container["resources"]["limits"])

    def test_labels_are_labels(self):
        for case, things in cases():
            for thing in things:
                with self.subTest(case, object=named(thing)):
                    for value in thing["metadata"]["labels"].values():
                        self.assertRegex(value, r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")

    def test_the_test_asks_for_a_model_that_has_pods(self):
        things = render("--values", CHART / "ci/numbers.yaml")
        self.assertIn("--model=demo: large #1", main_container(of_kind(things, "Pod")[0])["args"])

    def test_an_account_that_is_not_made_is_the_namespaces_own(self):
        accounts = {pod(thing)["serviceAccountName"] for thing in workloads(render("--set", "serviceAccount.create=false"))}
        self.assertEqual(accounts, {"default"})

    def test_all_nodes_of_a_release_are_of_one_cluster(self):
        for case, things in cases():
            with self.subTest(case):
                values = yaml.safe_load((CHART / f"ci/{case}.yaml").read_text()) or {}
                args = [main_container(thing)["args"] for thing in of_kind(workloads(things), "Deployment")]
                names = {arg for args in args for arg in args if arg.startswith("--cluster-name=")}
                self.assertEqual(len(names), 1, names)
                self.assertTrue(all(names & set(args) for args in args))
                if "clusterName" in values:
                    self.assertEqual(names, {"--cluster-name=" + values["clusterName"]})
                else:
                    self.assertRegex(names.pop(), r"^--cluster-name=[a-z0-9-]+/[a-z0-9-]+$")

    def test_routers_have_no_model(self):
        for values in ('download={"repository": "a/b"}', 'modelVolume={"claim": "a"}', 'synthetic="step=1ms"'):
            with self.subTest(values):
                words = [f"--set-json=nodeDefaults.{values}", "--set=drafterDefaults.model=/volume/a,expertDefaults.model=/volume/a"]
                routers = [thing for thing in workloads(render(*words)) if named(thing) == "Deployment demo-cascadia-router"]
                self.assertEqual([pod(thing) for thing in routers], [pod(workloads(render())[0])])

    def test_secrets_in_values_restart_who_reads_them(self):
        def changed(*values):
            before, after = (workloads(render("--set", value)) for value in values)
            return [named(new) for old, new in zip(before, after) if old["spec"]["template"] != new["spec"]["template"]]

        self.assertEqual(changed("apiKeys.keys={a}", "apiKeys.keys={b}"), ["Deployment demo-cascadia-router"])
        self.assertEqual(len(changed("admin.token=a", "admin.token=b")), 3)

    def test_a_change_of_what_reloads_changes_no_pod(self):
        before, after = render(), render("--set", "reload.router.max_sessions=7")
        self.assertIn("max_sessions = 7", of_kind(after, "ConfigMap")[0]["data"]["cascadia.toml"])
        self.assertEqual(workloads(before), workloads(after))


class Monitoring(unittest.TestCase):
    def test_rules_and_dashboards_are_the_projects_own(self):
        things = render("--set", "monitoring.rules.enabled=true,monitoring.dashboards.enabled=true")
        observability = REPOSITORY / "deploy/observability"
        rules = yaml.safe_load((observability / "prometheus/rules.yaml").read_text())
        self.assertEqual(of_kind(things, "PrometheusRule")[0]["spec"], rules)
        dashboards = {file.name: file.read_text() for file in (observability / "grafana").glob("*.json")}
        made = next(c for c in of_kind(things, "ConfigMap") if c["metadata"]["name"].endswith("-dashboards"))
        self.assertEqual(made["data"], dashboards)
        self.assertTrue(dashboards)


class Footprint(unittest.TestCase):
    def test_the_default_fits_a_small_node(self):
        """CPU requests of all pods, with one pod more of each Deployment as a rolling update has, and the test's pod."""

        def milli(quantity):
            return int(quantity[:-1]) if quantity.endswith("m") else int(float(quantity) * 1000)

        total = 0
        for thing in workloads(render()) + of_kind(render(), "Pod"):
            pods = thing["spec"].get("replicas", 1) + (thing["kind"] == "Deployment")
            total += pods * sum(milli(str(c["resources"]["requests"]["cpu"])) for c in pod(thing)["containers"])
        self.assertLessEqual(total, 1200)


class Refusals(unittest.TestCase):
    """Bad values are named, with what would be right, before anything is installed."""

    def test_no_default_can_be_taken_away(self):
        """A null in an operator's values takes a default away: the schema says that it is missing, before a template does."""
        values = yaml.safe_load((CHART / "values.yaml").read_text())
        schema = jsonschema.Draft7Validator(json.loads((CHART / "values.schema.json").read_text()))
        self.assertTrue(schema.is_valid(values))

        def defaults(part, *path):
            for key, value in part.items():
                if key == "targets":
                    continue
                yield (*path, key)
                if isinstance(value, dict) and key not in ("resources", "labels"):
                    yield from defaults(value, *path, key)

        for *path, last in defaults(values):
            without = part = copy.deepcopy(values)
            for key in path:
                part = part[key]
            del part[last]
            with self.subTest(".".join((*path, last))):
                self.assertFalse(schema.is_valid(without))

    CASES = {
        'experts=[{"replicas": "two"}]': ["/experts/0/replicas", "want integer"],
        'experts=[{"replicas": -1}]': ["/experts/0/replicas", "minimum"],
        'drafters=[{"replcas": 2}]': ["/drafters/0", "replcas"],
        "autoscale=true": ["autoscale", "not allowed"],
        'image.pullPolicy="Sometimes"': ["/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"],
        'experts=[{"name": "Big_One"}]': ["/experts/0/name", "Big_One", "pattern"],
        'experts=[{"gpu": {"count": "some"}}]': ["/experts/0/gpu/count", "want integer"],
        'experts=[{"served": []}]': ["/experts/0/served", "minItems"],
        "experts=[]": ["/experts", "minItems"],
        "experts=null": ["missing", "experts"],
        "etcd.external=null": ["/etcd", "missing", "external"],
        'nodeDefaults.resources={"limits": {"cpu": 2}}': ["/nodeDefaults", "resources", "not allowed"],
        'fullnameOverride="Big_One"': ["/fullnameOverride", "Big_One", "pattern"],
        'fullnameOverride="1st"': ["/fullnameOverride", "1st", "pattern"],
        'admin.token="two words"': ["/admin/token", "two words", "pattern"],
        'reload.router.max_sessions="many"': ["/reload/router/max_sessions", "want integer"],
        'experts=[{"settings": {"kv_memory": true}}]': ["/experts/0/settings/kv_memory", "want string"],
        "service.grpcPort=8080": ["service.httpPort and service.grpcPort are both 8080"],
        'drafters=[{"modelVolume": {"claim": "a"}}]': ["drafters[main].model", "/demo/pair/drafter", "under /volume"],
        "monitoring.podMonitor.enabled=true": ["networkPolicy.monitoring is empty", "namespaceSelector"],
        "router.autoscaling.enabled=true": ["networkPolicy.monitoring is empty", "router.autoscaling"],
        'router.autoscaling={"enabled": true, "targets": {"streams": null}}': ["router.autoscaling.targets is empty"],
        "requestSeconds=0": ["/requestSeconds", "minimum"],
        'etcd.external.endpoints=["etcd:2379"]': ["/etcd/external/endpoints/0", "etcd:2379"],
        'etcd={"enabled": false, "external": {"endpoints": ["https://etcd:2379"]}}': ["etcd.external.tls.secret is empty", "ca.crt"],
        'etcd={"enabled": false, "external": {"endpoints": ["https://a:1", "http://b:1"]}}': ["endpoints", "all of them alike"],
        'etcd={"enabled": false, "external": {"endpoints": ["http://a:1"], "tls": {"secret": "x"}}}': ["https://HOST:PORT"],
        'etcd.external.auth.secret="user"': ["etcd.external.auth", "leave auth out"],
        "reload.router.max_sesions=7": ["/reload/router", "max_sesions"],
        "reload.expert.kv_pages=7": ["/reload/expert", "kv_pages"],
        'experts=[{"settings": {"kv_pagse": 7}}]': ["/experts/0/settings", "kv_pagse"],
        'experts=[{"replicas": 3}, {}]': ['experts: two pools are named "main"', "name of its own"],
        'drafters=[{"name": "a"}, {"name": "a"}]': ['drafters: two pools are named "a"', "name of its own"],
        "router.replicas=0": ["router.replicas is 0", "set at least 1"],
        'experts=[{"replicas": 0}]': ["experts: no pool has a replica", "set replicas"],
        'drafters=[{"served": ["gpt"]}]': ["drafters[main].served", '"gpt"', "name one of: demo"],
        "etcd.enabled=false": ["etcd.external.endpoints is empty", "http://etcd.infra:2379"],
        "gateway.enabled=true": ["gateway.parentRefs is empty"],
        "drafterDefaults.autoscaling={\"enabled\": true, \"min\": 9}": ["drafters[main].autoscaling", "set max"],
        'experts=[{"synthetic": "step=5ms", "download": {"repository": "a/b"}}]': ["experts[main]", "no weights"],
    }

    def test_each_says_what_and_what_would_be_right(self):
        for words, says in self.CASES.items():
            self.check(["--set-json", words], says)

    def test_names_that_objects_cannot_have(self):
        for release in ("1st", "my.demo"):
            with self.subTest(release):
                said = helm("template", release, CHART, "--kube-version", "1.34").stderr
                self.assertIn(release, said)
                self.assertIn("set fullnameOverride", said)
        long = '{"name": "a-pool-of-20-letters", "autoscaling": {"enabled": true}}'
        words = [f"--set-json=drafters=[{long}]", "--set=networkPolicy.enabled=false,fullnameOverride=a-name-of-eighteen"]
        self.check(words, ["drafters[a-pool-of-20-letters].autoscaling", "shorten", "by 1\n"])

    def check(self, words, says):
        with self.subTest(words), self.assertRaises(ValueError) as refused:
            render(*words)
        for part in says:
            with self.subTest(words):
                self.assertIn(part, str(refused.exception))


if __name__ == "__main__":
    unittest.main()
