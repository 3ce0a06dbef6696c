"""Every flag and key of the chart, taken by the program whose pod it is in; and the chart knows every one there is."""

import json
import re
import subprocess
import tempfile
import tomllib
import unittest
from pathlib import Path

from manifests import CASCADIA, CHART, REPOSITORY, component, main_container, named, of_kind, render, workloads


# What the chart sets itself, by values of its own, or what has no place in a pod.
OWN = {
    "id", "listen", "admin", "admin_token_file", "etcd", "etcd_ca_file", "etcd_cert_file", "etcd_key_file", "etcd_user",
    "etcd_password_file", "etcd_prefix", "cluster_name", "static", "log", "log_json", "model", "served_model",
    "grace_seconds", "synthetic", "http", "api_key", "api_key_file", "max_timeout_ms", "default_timeout_ms", "lame_duck_ms",
    "otlp_endpoint", "trace_ratio",
}


def keys():
    """Section -> key -> whether a running node takes it up, and its type; as `cascadia config --print-defaults` says."""
    printed = subprocess.run([CASCADIA, "config", "--print-defaults"], capture_output=True, text=True, check=True).stdout
    found, section, reloads = {}, None, None
    for line in printed.splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            section = found.setdefault(match[1], {})
        elif match := re.fullmatch(r"# CASCADIA_\w+; (reloads|needs a restart)\.", line):
            reloads = match[1] == "reloads"
        elif reloads is not None and (match := re.match(r"(?:# )?(\w+) = .*", line)):
            value = tomllib.loads(match[0].removeprefix("# "))[match[1]]
            section[match[1]], reloads = (reloads, type(value)), None
    return found


class Keys(unittest.TestCase):
    def test_the_schema_knows_each_key_of_its_role(self):
        definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
        known = keys()
        common = known["node"]
        self.assertLessEqual({"etcd_prefix", "lease_ttl"}, set(common))
        for role in ("router", "drafter", "expert"):
            both = common | known[role]
            for name, reloads in ((f"{role}Settings", False), (f"{role}Reload", True)):
                with self.subTest(name):
                    there_are = {key: kind for key, (when, kind) in both.items() if when == reloads and key not in OWN}
                    self.check(definitions, name, there_are)
        there_are = {key: kind for key, (reloads, kind) in common.items() if not reloads and key not in OWN}
        self.check(definitions, "nodeSettings", there_are)

    def check(self, definitions, name, there_are):
        properties = definitions[name]["properties"]
        self.assertEqual(sorted(properties), sorted(there_are))
        for key, kind in there_are.items():
            said = definitions[properties[key]["$ref"].rsplit("/", 1)[-1]]["type"]
            # A whole default says nothing of what else there may be.
            wanted = {bool: ["boolean"], str: ["string"], list: ["array"], float: ["number"], int: ["integer", "number"]}[kind]
            self.assertIn(said, wanted, f"{name}.{key}")


class Taken(unittest.TestCase):
    def test_each_pod_is_configured(self):
        for case in sorted((CHART / "ci").glob("*.yaml")):
            things = render("--values", case)
            for thing in of_kind(workloads(things), "Deployment"):
                with self.subTest(case.stem, object=named(thing)):
                    self.check(things, thing)

    def check(self, things, thing):
        with tempfile.TemporaryDirectory() as folder:
            config = next(c for c in of_kind(things, "ConfigMap") if "cascadia.toml" in c["data"])
            (Path(folder) / "cascadia.toml").write_text(config["data"]["cascadia.toml"])
            (Path(folder) / "keys").write_text("a-key\n")
            for file in ("ca.crt", "tls.crt", "tls.key"):
                (Path(folder) / file).write_text("")

            def here(word):
                word = word.replace("$(POD_IP)", "127.0.0.1").replace("$(POD_NAME)", "pod")
                word = re.sub(r"^--model=.*", f"--model={REPOSITORY}/demo/pair/{component(thing)}", word)
                return re.sub(r"=/etc/cascadia(-api-keys|-etcd)?/", f"={folder}/", word)

            container = main_container(thing)
            environment = {entry["name"]: entry.get("value", "a-secret") for entry in container["env"]}
            answer = subprocess.run(
                [CASCADIA, *map(here, container["args"]), "--check"], env=environment, capture_output=True, text=True,
            )
            self.assertEqual(answer.returncode, 0, answer.stderr + answer.stdout)


if __name__ == "__main__":
    unittest.main()
