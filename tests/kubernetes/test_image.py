"""The image that deploy/image/pack makes without an engine."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import unittest
from pathlib import Path

from manifests import CASCADIA, REPOSITORY

PACK = REPOSITORY / "deploy/image/pack"


class Image(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.contents = self.folder / "contents"
        listed = (REPOSITORY / "deploy/image/contents").read_text()
        self.assertIn(" target/release/cascadia\n", listed)
        self.contents.write_text(listed.replace(" target/release/cascadia\n", f" {CASCADIA}\n"))

    def pack(self, *words):
        command = [PACK, "--contents", self.contents, *words]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    def test_the_root_is_whole(self):
        root = self.folder / "root"
        packed = self.pack("root", root)
        self.assertEqual(packed.returncode, 0, packed.stderr)
        # The packed loader with the packed libraries, and none of this machine's.
        loader = next(root.glob("lib*/**/ld-linux-*"))
        libraries = ":".join(str(path) for path in {file.parent for file in root.glob("**/lib*.so*")})
        program = root / "usr/local/bin/cascadia"
        answer = subprocess.run(
            [loader, "--inhibit-cache", "--library-path", libraries, program, "--version"], capture_output=True, text=True,
        )
        self.assertIn("cascadia", answer.stdout, answer.stderr)
        self.assertEqual((root / "demo/pair/expert/config.json").stat().st_mode & 0o777, 0o644)
        self.assertIn("cascadia:x:65532:65532:", (root / "etc/passwd").read_text())

    def test_the_archive_is_the_same_each_time_and_says_what_the_dockerfile_says(self):
        archives = [self.folder / "one.tar", self.folder / "two.tar"]
        for out in archives:
            packed = self.pack("archive", out, "example.com/cascadia:test")
            self.assertEqual(packed.returncode, 0, packed.stderr)
        self.assertEqual(archives[0].read_bytes(), archives[1].read_bytes())
        with tarfile.open(archives[0]) as archive:
            manifest = json.load(archive.extractfile("manifest.json"))[0]
            self.assertEqual(manifest["RepoTags"], ["example.com/cascadia:test"])
            config = json.load(archive.extractfile(manifest["Config"]))["config"]
            with tarfile.open(fileobj=archive.extractfile(manifest["Layers"][0])) as layer:
                owners = {(member.uid, member.gid, member.mtime) for member in layer}
        self.assertEqual(owners, {(0, 0, 0)})
        self.assertEqual(config["User"], "65532:65532")
        self.assertEqual(config["Entrypoint"], ["/usr/local/bin/cascadia"])
        self.assertEqual(set(config["ExposedPorts"]), {"8080/tcp", "50051/tcp", "9090/tcp"})

    def test_what_is_not_there_is_named(self):
        self.contents.write_text("0755 /a no/such/program\n")
        packed = self.pack("root", self.folder / "root")
        self.assertNotEqual(packed.returncode, 0)
        self.assertIn("no/such/program", packed.stderr)

    def test_what_cargo_built_elsewhere_is_found(self):
        built = self.folder / "elsewhere/release/cascadia"
        built.parent.mkdir(parents=True)
        built.write_text("built elsewhere")
        self.contents.write_text("0644 /a target/release/cascadia\n")
        for place in (str(self.folder / "elsewhere"), "elsewhere"):
            command = list(map(str, [PACK, "--contents", self.contents, "root", self.folder / "root"]))
            environment = os.environ | {"CARGO_TARGET_DIR": place}
            packed = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
            self.assertEqual(packed.returncode, 0, packed.stderr)
            self.assertEqual((self.folder / "root/a").read_text(), "built elsewhere")
            # So does the drill's own client.
            asked = [sys.executable, "-c", "from manifests import BUILT; print(BUILT)"]
            environment["PYTHONPATH"] = str(Path(__file__).parent)
            built = subprocess.run(asked, cwd=self.folder, env=environment, capture_output=True, text=True, check=True)
            self.assertEqual(built.stdout.strip(), str(self.folder / "elsewhere"))

    def test_a_place_that_cannot_be_written_to_is_named(self):
        self.contents.write_text("0755 /a/\n")
        for words in (("archive", "/no/such/out.tar", "a:b"), ("root", "/dev/null/root")):
            packed = self.pack(*words)
            self.assertTrue(packed.stderr.startswith("error: ") and words[1] in packed.stderr, packed.stderr)

    def test_the_build_gets_the_whole_workspace(self):
        let_in = set(re.findall(r"^!(\S+)", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
        workspace = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["workspace"]
        needed = set(workspace["members"]) | {"Cargo.toml", "Cargo.lock", "LICENSE", ".cargo", "deploy/image"}
        self.assertLessEqual(needed, let_in)


if __name__ == "__main__":
    unittest.main()
