"""A stand-in of the Hub's API on this machine: repositories of files with commits and pull requests, in memory.

Requests and answers are those of huggingface_hub, whose own client is what talks to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils.sha import git_hash

TOKEN = "hf_stand_in"
Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits by id, and what `main` and each pull request point to."""

    name: str
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Pull requests: num, title, parent."""

    def commit(self, files: Files, ref: str = "main") -> str:
        """Let a ref point to a new commit of these files."""
        content = repr((len(self.commits), sorted(files.items())))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[ref] = sha
        return sha

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.refs.get(revision, revision)]


@dataclass
class Answer:
    """What is answered instead: by status and headers, or not at all for a while."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    wait: float = 0.0


@dataclass
class Hub:
    """The stand-in. instead: answers by a pattern of `METHOD path`; calls: what was asked, in order.

    ignored: paths that a .gitignore leaves out; large: contents that are stored apart from git, by SHA-256.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    instead: dict[str, Answer] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    before_commit: Callable[[], object] | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def repository(self, name: str, files: Files) -> Repository:
        self.repositories[name] = made = Repository(name)
        made.commit(files)
        return made


@contextmanager
def serving() -> Iterator[Hub]:
    """A stand-in that answers at `address`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.done.set()
        server.shutdown()
        server.server_close()
        thread.join()


def is_large(path: str) -> bool:
    """What the Hub stores apart from git: pictures here."""
    return path.endswith(".png")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        place = urlsplit(self.path)
        call = f"{self.command} {unquote(place.path)}"
        self.hub.calls.append(call)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        instead = next((it for pattern, it in self.hub.instead.items() if re.search(pattern, call)), None)
        if instead is not None:
            self.hub.done.wait(instead.wait)
            return self._send(instead.status, instead.headers, instead.body)
        if place.path.startswith("/large/"):
            self.hub.large[place.path.removeprefix("/large/")] = body
            return self._send(200, {}, b"")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
        if place.path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        match = re.match(r"/(?:api/models/)?([^/]+/[^/]+?)(?:\.git)?(?:/(.*))?$", unquote(place.path))
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
        return self._of(repository, match[2] or "", parse_qs(place.query), body)

    def _of(self, repository: Repository, rest: str, query: dict[str, list[str]], body: bytes) -> None:
        verb, _, revision = rest.partition("/")
        if verb in ("", "revision"):
            sha = self._sha(repository, revision or "main")
            return self._json({"_id": "1", "id": repository.name, "sha": sha, "private": False, "siblings": []})
        if verb == "paths-info":
            files = repository.files(revision)
            wanted = parse_qs(body.decode())["paths"]
            return self._json([_info(path, files[path]) for path in wanted if path in files])
        if verb == "resolve":
            return self._resolve(repository, *revision.split("/", 1))
        if verb == "discussions":
            return self._json(_discussions(repository))
        if verb == "preupload":
            return self._json(_preupload(self.hub, repository.files(revision), json.loads(body)))
        if verb == "info":
            return self._json(_batch(self.hub, json.loads(body)))
        if verb == "commit":
            return self._commit(repository, [json.loads(line) for line in body.splitlines()], query)
        raise AssertionError(f"the stand-in has no {rest}")

    def _sha(self, repository: Repository, revision: str) -> str:
        return repository.refs.get(revision, revision)

    def _resolve(self, repository: Repository, revision: str, path: str) -> None:
        data = repository.files(revision).get(path)
        if data is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"{}")
        headers = {"X-Repo-Commit": self._sha(repository, revision), "ETag": f'"{git_hash(data)}"'}
        return self._send(200, headers, data)

    def _validate(self, content: str) -> None:
        match = REGEX_YAML_BLOCK.search(content)
        try:
            data = yaml.safe_load(match[2]) if match else None
        except yaml.YAMLError as error:
            return self._json({"errors": [{"message": f"bad YAML: {error.__class__.__name__}"}]}, 400)
        return self._json({"warnings": [] if data else [{"message": "empty or missing yaml metadata in repo card"}]})

    def _commit(self, repository: Repository, lines: list[dict[str, Any]], query: dict[str, list[str]]) -> None:
        if self.hub.before_commit:
            self.hub.before_commit()
        header = lines[0]["value"]
        assert query["create_pr"] == ["1"]
        files = dict(repository.commits[header["parentCommit"]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        number = len(repository.requests) + 1
        repository.requests.append({"num": number, "title": header["summary"], "parent": header["parentCommit"]})
        sha = repository.commit(files, f"refs/pr/{number}")
        base = f"{self.hub.address}/{repository.name}"
        self._json(
            {"commitUrl": f"{base}/commit/{sha}", "commitOid": sha, "pullRequestUrl": f"{base}/discussions/{number}"}
        )

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except ConnectionError:  # the client has given up
            self.close_connection = True


def _info(path: str, data: bytes) -> dict[str, Any]:
    info: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if is_large(path):
        info["oid"] = git_hash(b"pointer")
        info["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 7}
    return info


def _discussions(repository: Repository) -> dict[str, Any]:
    rows = [
        {
            "title": request["title"],
            "num": request["num"],
            "author": {"name": "somebody"},
            "createdAt": "2026-01-01T00:00:00.000Z",
            "status": "open",
            "repo": {"name": repository.name, "type": "model"},
            "isPullRequest": True,
        }
        for request in repository.requests
    ]
    return {"count": len(rows), "start": 0, "discussions": rows}


def _preupload(hub: Hub, files: Files, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": file["path"] in hub.ignored,
                "oid": git_hash(files[file["path"]]) if file["path"] in files else None,
            }
            for file in body["files"]
        ]
    }


def _batch(hub: Hub, body: dict[str, Any]) -> dict[str, Any]:
    objects = [
        {**item, "authenticated": True, "actions": {"upload": {"href": f"{hub.address}/large/{item['oid']}"}}}
        for item in body["objects"]
    ]
    return {"transfer": "basic", "objects": objects}
