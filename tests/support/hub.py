"""A model hub on the loopback interface: as much of its interface as huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class Hub:
    """``files`` of the one repository `acme/base`. The next fields make it misbehave."""

    files: Mapping[str, bytes]
    url: str = ""
    status: int = 200  # of everything
    error_code: str = ""  # the hub's own word for what is wrong
    token: str | None = None  # whom it answers
    breaks_at: int | None = None  # bytes after which the first transfer of a large file breaks off
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(self.path.split("?")[0])
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "RepoNotFound")
        elif hub.status != 200:
            self._refuse(hub.status, hub.error_code)
        elif not path.removeprefix("/api/models").startswith("/acme/base"):
            self._refuse(401, "RepoNotFound")
        elif path.startswith("/api/models/acme/base"):
            self._describe(path.removeprefix("/api/models/acme/base"))
        else:
            name = path.rpartition("/")[2]
            if name in hub.files:
                self._send_file(hub.files[name], with_body=with_body)
            else:
                self._refuse(404, "EntryNotFound")

    def _describe(self, what: str) -> None:
        kind, _, revision = what.strip("/").partition("/")
        if kind == "revision" and revision not in ("main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif kind == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.hub.files.items()
            ]
            self._send_json(entries)
        else:
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._send_json({"id": "acme/base", "sha": COMMIT, "siblings": siblings})

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, data: bytes, *, with_body: bool) -> None:
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not with_body:
            return
        hub = self.hub
        if hub.breaks_at is not None and len(data) > hub.breaks_at > start:
            end, hub.breaks_at = hub.breaks_at, None
            self.wfile.write(data[start:end])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(data[start:])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
