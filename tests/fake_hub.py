"""A small Hub on 127.0.0.1: the parts of the HTTP API that listing, fetching and publishing use."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "c" * 40


@dataclass
class FakeRepo:
    """One model repository; `status` and `error_code` make every request to it fail."""

    files: Mapping[str, bytes]
    tags: tuple[str, ...] = ()
    downloads: int = 0
    status: int = 200
    error_code: str = ""


@dataclass
class FakeHub:
    """Use as a context manager; `address` goes to HF_ENDPOINT."""

    repos: dict[str, FakeRepo] = field(default_factory=dict)
    status: int = 200
    requests: list[str] = field(default_factory=list)
    commits: list[list[dict]] = field(default_factory=list)

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(_Handler):
            fake = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self):
        self._get()

    def do_GET(self):
        self._get()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.fake.requests.append(f"POST {path}")
        if self.fake.status != 200:
            return self._send(self.fake.status, b"{}")
        if path == "/api/repos/create":
            name = json.loads(body)["name"]
            owner = json.loads(body).get("organization") or "me"
            self.fake.repos.setdefault(f"{owner}/{name}", FakeRepo({}))
            return self._json({"url": f"{self.fake.address}/{owner}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.fake.commits.append(lines)
            repo = path.split("/api/models/")[1].split("/commit/")[0]
            files = dict(self.fake.repos[repo].files)
            for line in lines:
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.fake.repos[repo] = FakeRepo(files)
            url = f"{self.fake.address}/{repo}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})
        return self._send(404, b"{}")

    def _get(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        self.fake.requests.append(f"{self.command} {path}")
        if self.fake.status != 200:
            return self._send(self.fake.status, b"{}")
        if path == "/api/models":
            return self._list(query)
        if path == "/api/whoami-v2":
            return self._json({"name": "me", "type": "user"})
        if path.startswith("/api/models/"):
            return self._about(path.removeprefix("/api/models/"))
        if "/resolve/" in path:
            repo, _, rest = path.strip("/").partition("/resolve/")
            return self._file(repo, rest.partition("/")[2])
        return self._send(404, b"{}")

    def _list(self, query: dict[str, list[str]]) -> None:
        wanted = query.get("filter", [])
        word = query.get("search", [""])[0].lower()
        found = [
            {
                "id": name,
                "modelId": name,
                "downloads": repo.downloads,
                "tags": list(repo.tags),
                "private": False,
            }
            for name, repo in self.fake.repos.items()
            if set(wanted) <= set(repo.tags) | {"text-generation"} and word in name.lower()
        ]
        found.sort(key=lambda entry: -entry["downloads"])
        self._json(found[: int(query.get("limit", ["100"])[0])])

    def _about(self, rest: str) -> None:
        name, _, tail = rest.partition("/revision/")
        name, _, tree = name.partition("/tree/")
        repo = self._repo(name)
        if repo is None:
            return None
        if tree or "/tree/" in tail:
            entries = [_entry(path, data) for path, data in repo.files.items()]
            return self._json(entries)
        siblings = [{"rfilename": path} for path in repo.files]
        return self._json(
            {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
        )

    def _file(self, name: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        if path not in repo.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = repo.files[path]
        return self._send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _repo(self, name: str) -> FakeRepo | None:
        repo = self.fake.repos.get(name)
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.status != 200:
            self._send(repo.status, b"", {"X-Error-Code": repo.error_code} if repo.error_code else {})
            return None
        return repo

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def reachable_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """A running fake that the Hub's client takes for the Hub, with its cache in a folder of the test."""
    with FakeHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield running
