"""Serves what pods say on their own pages as custom metrics, as an adapter does in a cluster: metrics.py ADMIN.CONF PORT CERT KEY.

What the API server asks it: which metrics there are, and the value of one at each pod that a selector of labels finds.
"""

import json
import re
import ssl
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from policies import Api

VERSION = "custom.metrics.k8s.io/v1beta2"
ASKED = re.compile(rf"/apis/{VERSION}/namespaces/([^/]+)/pods/\*/([^/]+)")


class Adapter(BaseHTTPRequestHandler):
    def do_GET(self):
        path, query = urlsplit(self.path)[2:4]
        if asked := ASKED.fullmatch(unquote(path)):
            selector = parse_qs(query).get("labelSelector", [""])[0]
            return self.say({"kind": "MetricValueList", "apiVersion": VERSION, "items": list(values(*asked.groups(), selector))})
        if path != f"/apis/{VERSION}":
            return self.send_error(404)
        self.say({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": []})

    def say(self, what):
        text = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def values(namespace, metric, selector):
    api = Api(json.loads(Path(sys.argv[1]).read_text()))
    wanted = dict(label.split("=") for label in selector.split(",") if label)
    for pod in api.list(f"/api/v1/namespaces/{namespace}/pods"):
        if not wanted.items() <= pod["metadata"].get("labels", {}).items() or not pod["status"].get("podIP"):
            continue
        try:
            with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9090/metrics", timeout=2) as page:
                found = re.findall(rf"(?m)^{metric}(?:\{{.*\}})? (\S+)$", page.read().decode())
        except OSError:
            continue
        if found:
            yield {
                "describedObject": {"kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "apiVersion": "/v1"},
                "metric": {"name": metric}, "value": f"{sum(map(float, found)) * 1000:.0f}m",
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }


def main():
    server = ThreadingHTTPServer(("", int(sys.argv[2])), Adapter)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[3:5])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
