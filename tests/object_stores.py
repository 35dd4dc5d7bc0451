"""A server of S3 on this machine, a proxy before it that does what networks do, and buckets."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3

KEYS = {
    "AWS_ACCESS_KEY_ID": "an-id",
    "AWS_SECRET_ACCESS_KEY": "a-very-secret-key",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def s3_server():
    """The endpoint of a server of S3 that holds nothing."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


class Bucket:
    """A new bucket, and the environment that leads to it."""

    count = 0

    def __init__(self, endpoint):
        Bucket.count += 1
        self.endpoint = endpoint
        self.name = f"bucket-{Bucket.count}"
        self.env = {**KEYS, "AWS_ENDPOINT_URL": endpoint}
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="an-id",
            aws_secret_access_key="a-very-secret-key",
        )
        self.client.create_bucket(Bucket=self.name)

    def url(self, key):
        return f"s3://{self.name}/{key}"

    def get(self, key):
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def names(self):
        return [
            each["Key"]
            for each in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        ]

    def unfinished(self):
        """Uploads that were neither completed nor taken back."""
        return self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])

    def put(self, path, key=None):
        """A file, or all files of a folder, under its name: the URL."""
        path = Path(path)
        key = path.name if key is None else key
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            below = file.relative_to(path).as_posix()
            name = key if file == path else f"{key}/{below}"
            self.client.put_object(Bucket=self.name, Key=name, Body=file.read_bytes())
        return self.url(key)


class Proxy:
    """Stands before a server; ``fault(method, path, number)`` says what becomes of a request:
    None, ``(status, body)``, what is called before it goes through, or how many bytes of the answer
    come through before the connection ends (``cut``) or stands still (``stall``). ``requests`` and
    ``sent`` count what went through.
    """

    def __init__(self, endpoint):
        self.requests, self.sent = [], 0
        self.fault = lambda method, path, number: None
        self._lock = threading.Lock()
        proxy, host = self, endpoint.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle(self):
                # Whoever asked may be gone.
                with contextlib.suppress(OSError, HTTPException):
                    super().handle()

            def answer(self):
                with proxy._lock:
                    number = len(proxy.requests)
                    kept = {name: self.headers.get(name) for name in ("Range", "If-Match")}
                    proxy.requests.append((self.command, self.path, kept))
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path, number)
                if callable(fault):
                    fault = fault()
                if isinstance(fault, tuple) and isinstance(fault[0], int):
                    status, body = fault
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                    return
                with contextlib.closing(HTTPConnection(host, timeout=60)) as server:
                    server.request(self.command, self.path, sent, dict(self.headers))
                    found = server.getresponse()
                    body = found.read()
                self.send_response(found.status)
                for name, value in found.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                        self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault is not None:
                    kind, count = fault
                    self.wfile.write(body[:count])
                    self.wfile.flush()
                    if kind == "stall":
                        proxy.released.wait(60)
                    self.close_connection = True
                    return
                self.wfile.write(body)
                if found.status == 206:
                    with proxy._lock:
                        proxy.sent += len(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        self.released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def ranges(self):
        """The bytes ``[start, stop)`` that were asked for, by path."""
        found = {}
        for method, path, kept in self.requests:
            ends = re.fullmatch(r"bytes=(\d+)-(\d+)", kept["Range"] or "")
            if method == "GET" and ends:
                found.setdefault(path, []).append((int(ends[1]), int(ends[2]) + 1))
        return found


def environment(bucket, proxy=None):
    """The whole environment of a process."""
    endpoint = bucket.endpoint if proxy is None else proxy.endpoint
    return {**os.environ, **bucket.env, "AWS_ENDPOINT_URL": endpoint}
