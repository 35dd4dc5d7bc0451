"""Servers of files, and a hub of models before one."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Answers with ``answer(handler)``; ``requests`` are method, path and headers."""

    def __init__(self, answer):
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, body=b"", **headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                if "Content_Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_GET(self):
                server.requests.append((self.command, self.path, dict(self.headers)))
                answer(self)

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def files(contents, *, ranges=True, etag=True):
    """What answers with these files, by path."""

    def answer(handler):
        data = contents.get(handler.path)
        if data is None:
            handler.reply(404)
            return
        digest = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"ETag": digest} if etag else {"Last_Modified": "Tue, 03 Nov 2026 10:00:00 GMT"}
        if etag and handler.headers.get("If-Match", digest) != digest:
            handler.reply(412, **headers)
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if handler.command == "HEAD":
            handler.reply(200, Content_Length=str(len(data)), Accept_Ranges="bytes", **headers)
        elif span and ranges:
            first, last = int(span[1]), min(int(span[2]), len(data) - 1)
            place = f"bytes {first}-{last}/{len(data)}"
            handler.reply(206, data[first : last + 1], Content_Range=place, **headers)
        else:
            handler.reply(200, data, **headers)

    return answer


COMMIT = "c0ffee" * 6 + "c0ff"


def hub(contents, elsewhere):
    """What answers as the hub does for the model org/name at one commit; the bytes of its files
    are at ``elsewhere``."""

    def answer(handler):
        resolve = re.fullmatch(r"/org/name/resolve/([^/]+)/(.+)", handler.path)
        tree = re.match(r"/api/models/org/name/tree/([^/?]+)/?([^?]*)", handler.path)
        if resolve and resolve[2] in contents:
            data = contents[resolve[2]]
            handler.reply(
                302,
                X_Repo_Commit=COMMIT,
                X_Linked_Size=str(len(data)),
                X_Linked_Etag=f'"{hashlib.sha256(data).hexdigest()}"',
                ETag='"of-the-hub"',
                Location=f"{elsewhere}/{resolve[2]}",
            )
        elif tree:
            above = f"{tree[2]}/" if tree[2] else ""
            inside = {n[len(above) :] for n in contents if n.startswith(above)}
            entries = [
                {"type": "directory", "path": above + name, "oid": "0"}
                for name in sorted({n.partition("/")[0] for n in inside if "/" in n})
            ]
            entries += [
                {"type": "file", "path": above + n, "size": len(contents[above + n]), "oid": "0"}
                for n in sorted(inside)
                if "/" not in n
            ]
            body = json.dumps(entries).encode()
            if inside:
                handler.reply(200, body, Content_Type="application/json")
            else:
                handler.reply(404, X_Error_Code="EntryNotFound")
        elif resolve:
            handler.reply(404, X_Error_Code="EntryNotFound")
        else:
            handler.reply(404, X_Error_Code="RepoNotFound")

    return answer
