"""A local stand-in for the Hub: the part of its API that loading a model or a dataset uses."""

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """The repositories of the stand-in, and the requests it received.

    Args:
        repositories: directory of each repository by its path on the Hub: `owner/name` for a model,
            `datasets/owner/name` for a dataset.
        errors: status code for all requests of a repository, by its path.
    """

    def __init__(self, repositories: dict[str, Path], errors: dict[str, int]) -> None:
        self.repositories = repositories
        self.errors = errors
        self.requests: list[str] = []
        self.url = ""

    def find(self, path: str) -> tuple[str, str]:
        """The repository at the start of `path`, and the rest of `path`."""
        for name in sorted({*self.repositories, *self.errors}, key=len, reverse=True):
            if path == name or path.startswith(f"{name}/"):
                return name, path[len(name) + 1 :]
        return "", path

    def files(self, name: str) -> dict[str, Path]:
        folder = self.repositories[name]
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def serve(repositories: dict[str, Path], errors: dict[str, int] | None = None) -> Iterator[HubStandIn]:
    """Run a stand-in at `url` inside the block."""
    hub = HubStandIn(repositories, errors or {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Log nothing; the default writes to stderr."""

    def do_HEAD(self) -> None:
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        is_json = "json" in self.headers.get("Content-Type", "")
        self._answer(json.loads(body) if is_json else urllib.parse.parse_qs(body))

    def _answer(self, form: dict[str, Any]) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0]).strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        if not path:
            return self._send(200, b"the Hub's front page")
        is_api = path.startswith("api/")
        name, rest = self.hub.find(path.removeprefix("api/").removeprefix("models/") if is_api else path)
        if name in self.hub.errors:
            return self._send(self.hub.errors[name], b"stand-in error")
        if not name:
            return self._send(404, b"Repository not found", {"X-Error-Code": "RepoNotFound"})
        files = self.hub.files(name)
        if match := re.fullmatch(r"resolve/[^/]+/(.+)", rest):
            if match[1] not in files:
                return self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return self._send_file(files[match[1]].read_bytes())
        if is_api and re.fullmatch(r"(revision/[^/]+)?", rest):
            return self._send_json(self._describe(name, files))
        if is_api and (match := re.fullmatch(r"tree/[^/]+(?:/(.+))?", rest)):
            folder = f"{match[1]}/" if match[1] else ""
            entries = [entry for entry in _entries(files) if entry["path"].startswith(folder)]
            if entries:
                return self._send_json(entries)
            return self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        if is_api and re.fullmatch(r"paths-info/[^/]+", rest):
            return self._send_json([entry for entry in _entries(files) if entry["path"] in form.get("paths", [])])
        return self._send(404, b"no such endpoint")

    def _describe(self, name: str, files: dict[str, Path]) -> dict[str, Any]:
        date = "2024-01-04T12:00:00.000Z"
        return {
            "_id": "0", "id": name.removeprefix("datasets/"), "sha": _COMMIT, "private": False, "gated": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "lastModified": date, "createdAt": date,
            "siblings": [{"rfilename": path} for path in files],
        }  # fmt: skip

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, content: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(206, content[start : end + 1], headers)
        return self._send(200, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": _COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(files: dict[str, Path]) -> list[dict[str, Any]]:
    """The files and their directories, in the format of the tree and paths-info endpoints."""
    folders = sorted({str(parent) for path in files for parent in Path(path).parents} - {"."})
    entries: list[dict[str, Any]] = []
    for path in folders:
        entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
    for path, file in files.items():
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        entries.append({"type": "file", "oid": oid, "size": file.stat().st_size, "path": path})
    return entries
