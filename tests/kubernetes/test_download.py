"""The init step that downloads models, run by a shell against a server of files."""

import http.server
import os
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from manifests import CHART

INDEX = '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}'


class Hub(http.server.BaseHTTPRequestHandler):
    """OWNER/NAME/resolve/REVISION/FILE, with ranges; notes what is asked."""

    files, asked, token = {}, [], None

    def do_GET(self):
        self.asked.append(self.path)
        data = self.files.get(self.path.split("/resolve/rev/")[-1])
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send_error(401)
        if data is None or not self.path.startswith("/some/model/resolve/rev/"):
            return self.send_error(404)
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        if start >= len(data) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", len(data) - start)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:])

    def log_message(self, *_):
        pass


class Download(unittest.TestCase):
    def setUp(self):
        Hub.asked, Hub.token = [], None
        Hub.files = {
            "config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": INDEX.encode(),
            "model-1.safetensors": b"one" * 1000, "model-2.safetensors": b"two" * 1000,
        }
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "model"
        self.environment = os.environ | {
            "ENDPOINT": f"http://127.0.0.1:{server.server_port}", "REPOSITORY": "some/model", "REVISION": "rev",
            "FOLDER": str(self.folder),
        }

    def run_it(self, **more):
        script = ["sh", str(CHART / "files/download.sh")]
        return subprocess.run(script, env=self.environment | more, capture_output=True, text=True, timeout=60)

    def test_all_files_come_once(self):
        answer = self.run_it()
        self.assertEqual(answer.returncode, 0, answer.stderr)
        for name, data in Hub.files.items():
            self.assertEqual((self.folder / name).read_bytes(), data)
        self.assertIn("model-2.safetensors: 3000 bytes", answer.stdout)
        self.assertEqual(list(self.folder.glob("*.part")), [])
        Hub.asked.clear()
        again = self.run_it()
        self.assertEqual((again.returncode, Hub.asked), (0, []))
        self.assertIn("in the cache", again.stdout)

    def test_what_was_cut_goes_on(self):
        self.folder.mkdir()
        (self.folder / "model-1.safetensors.part").write_bytes(b"one" * 900)
        self.assertEqual(self.run_it().returncode, 0)
        self.assertEqual((self.folder / "model-1.safetensors").read_bytes(), b"one" * 1000)

    def test_whole_but_unnamed_heals(self):
        self.folder.mkdir()
        (self.folder / "model-1.safetensors.part").write_bytes(b"one" * 1000)
        if self.run_it().returncode:
            self.assertEqual(self.run_it().returncode, 0)
        self.assertEqual((self.folder / "model-1.safetensors").read_bytes(), b"one" * 1000)

    def test_a_model_of_one_file(self):
        for name in ("model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"):
            del Hub.files[name]
        Hub.files["model.safetensors"] = b"weights"
        self.assertEqual(self.run_it().returncode, 0)
        self.assertEqual((self.folder / "model.safetensors").read_bytes(), b"weights")

    def test_a_missing_model_is_a_failure_that_names_it(self):
        del Hub.files["model-2.safetensors"]
        answer = self.run_it()
        self.assertNotEqual(answer.returncode, 0)
        self.assertIn("cannot get", answer.stderr)
        self.assertIn("model-2.safetensors", answer.stderr)
        self.assertFalse((self.folder / ".complete").exists())

    def test_a_token_is_shown_and_not_on_the_command_line(self):
        Hub.token = "hf_secret"
        self.assertNotEqual(self.run_it().returncode, 0)
        answer = self.run_it(TOKEN="hf_secret")
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.assertNotIn("hf_secret", answer.stdout + answer.stderr)

    def test_pods_of_one_cache_take_turns(self):
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.run_it())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([answer.returncode for answer in answers], [0, 0, 0])
        self.assertEqual(sum(path.endswith("model-1.safetensors") for path in Hub.asked), 1)


if __name__ == "__main__":
    unittest.main()
