"""A real server of S3 in a process of its own, behind a proxy that does what a test asks for: an
answer with a status, a stall, an object that someone else puts there first."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "bucket"
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "very-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"


class FaultyStore:
    """What a test sees of it."""

    def __init__(self, port):
        self._port = port
        self.environment = {**_CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

    def _ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        connection.request(method, path, body, {"Authorization": _SIGNED})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def reset(self):
        """An empty bucket, and no faults."""
        self.faults()
        for key in self.names():
            self._ask("DELETE", f"/{BUCKET}/{key}")
        for key, upload in self.unfinished():
            self._ask("DELETE", f"/{BUCKET}/{key}?uploadId={upload}")
        self._ask("PUT", f"/{BUCKET}")
        self._ask("DELETE", "/_log")

    def faults(self, *rules):
        """``rules``: ``method`` and ``match`` (of the path) say of which requests, ``status`` or
        ``stall`` (seconds) or ``put`` (an object, before the request) what is done, ``times`` how
        often."""
        self._ask("PUT", "/_faults", json.dumps(rules))

    def log(self):
        """The requests so far: method and path."""
        return [tuple(each) for each in json.loads(self._ask("GET", "/_log")[1])]

    def put(self, key, data):
        assert self._ask("PUT", f"/{BUCKET}/{key}", data)[0] == 200

    def get(self, key):
        status, data = self._ask("GET", f"/{BUCKET}/{key}")
        return data if status == 200 else None

    def names(self):
        return re.findall("<Key>(.*?)</Key>", self._ask("GET", f"/{BUCKET}")[1].decode())

    def unfinished(self):
        """The keys and numbers of uploads that were neither completed nor taken back."""
        listed = self._ask("GET", f"/{BUCKET}?uploads")[1].decode()
        return re.findall(r"<Key>(.*?)</Key>\s*<UploadId>(.*?)</UploadId>", listed)

    def wait_for(self, method, match):
        """Wait until such a request has come."""
        for _ in range(600):
            if any(each == method and re.search(match, path) for each, path in self.log()):
                return
            time.sleep(0.05)
        raise AssertionError(f"no {method} of {match}: {self.log()}")


@contextmanager
def faulty_store():
    """The server, as long as the block lasts."""
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("AWS_")}
    command = [sys.executable, __file__]
    server = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield FaultyStore(int(server.stdout.readline()))
    finally:
        server.kill()
        server.communicate()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rules, seen, lock = [], [], threading.Lock()
    port = 0

    def log_message(self, *_):
        pass

    def _go(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        own = type(self)
        if self.path == "/_faults":
            own.rules = json.loads(body)
            self._answer(200, b"")
        elif self.path == "/_log":
            data = json.dumps(own.seen).encode()
            if self.command == "DELETE":
                own.seen = []
            self._answer(200, data)
        else:
            own.seen.append((self.command, self.path))
            rule = self._rule()
            if "put" in rule:
                self._forward("PUT", f"/{BUCKET}/{rule['put']}", b"someone else's", {})
            time.sleep(rule.get("stall", 0))
            if "status" in rule:
                self._answer(rule["status"], b"")
            else:
                self._answer(*self._forward(self.command, self.path, body, dict(self.headers)))

    def _rule(self):
        with self.lock:
            for rule in self.rules:
                fits = rule["method"] == self.command and re.search(rule["match"], self.path)
                if fits and rule.get("times", 1) > 0:
                    rule["times"] = rule.get("times", 1) - 1
                    return rule
        return {}

    def _forward(self, method, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, answer.getheaders()

    def _answer(self, status, data, headers=()):
        self.send_response(status)
        size = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                size = value
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _go


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that are killed close their connections."""


def main():
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    _Proxy.port = moto.get_host_and_port()[1]
    server = _Quiet(("127.0.0.1", 0), _Proxy)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
