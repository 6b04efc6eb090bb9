"""A real HTTP server that speaks the Hub's protocol: one origin for the Hub, another port for its CDN.

It knows nothing of the analyzer. Tests read `requests` to see what a client really asked for, and set `tamper` to
make it answer as a broken proxy or CDN would.
"""

import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin")  # what the Hub keeps outside of git, behind a redirect to the CDN


@dataclass(frozen=True)
class Request:
    origin: str  # "hub" or "cdn"
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict
    body: bytes = b""
    cut: int | None = None  # break the connection off after that many bytes of the body

    def with_headers(self, **headers):
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, headers={k: v for k, v in {**self.headers, **changed}.items() if v is not None})


@dataclass(frozen=True)
class Repository:
    token: str | None = None  # the only token that may read it
    gated: bool = False  # then anybody may list it
    branches: dict = field(default_factory=dict)  # name -> commit
    history: dict = field(default_factory=dict)  # commit -> {path: bytes}

    def resolve(self, revision):
        commit = self.branches.get(revision, revision)
        return commit if commit in self.history else None


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave when it has seen enough
            super().handle_error(request, client_address)


class HubServer:
    def __init__(self):
        self.requests = []
        self.repositories = {}
        self.tamper = lambda request, reply: reply
        self._recording = threading.Lock()
        self._key = secrets.token_bytes(16)
        self._blobs = {}  # sha256 -> bytes
        self._servers = [self._start("hub", self._answer_hub), self._start("cdn", self._answer_cdn)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def add(self, model, folder, *, branch="main", token=None, gated=False):
        """Publish a folder as a new commit of a repository, and return the commit."""
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        commit = hashlib.sha1(repr([model, sorted(files.items())]).encode()).hexdigest()
        repository = self.repositories.setdefault(model, Repository(token, gated))
        repository.history[commit] = files
        repository.branches[branch] = commit
        self._blobs |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        return commit

    def expire_signed_urls(self):
        self._key = secrets.token_bytes(16)

    def asked(self, origin, method="GET"):
        return [request for request in self.requests if (request.origin, request.method) == (origin, method)]

    def stop(self):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _start(self, origin, answer):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each reply waits 40 ms for the client's acknowledgement

            def do_GET(self):
                request = Request(
                    origin, self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")
                )
                with hub._recording:
                    hub.requests.append(request)
                reply = hub.tamper(request, answer(request))
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(reply.body[: reply.cut])
                self.close_connection = reply.cut is not None

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        server = QuietServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _answer_hub(self, request):
        parts = urlsplit(request.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", parts.path):
            model, kind, revision = match.groups()
            repository, commit, refusal = self._find(model, unquote(revision or "main"), request)
            if refusal:
                return refusal
            files = repository.history[commit]
            if kind == "tree":
                return _json([_tree_entry(path, data) for path, data in files.items()])
            blobs = parse_qs(parts.query).get("blobs", ["false"])[0].lower() == "true"
            siblings = [_sibling(path, data, blobs) for path, data in files.items()]
            return _json(
                {"id": model, "modelId": model, "sha": commit, "siblings": siblings, "gated": repository.gated}
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
            model, revision, path = match[1], unquote(match[2]), unquote(match[3])
            repository, commit, refusal = self._find(model, revision, request)
            if refusal:
                return refusal
            if repository.gated and request.authorization != f"Bearer {repository.token}":
                return _refusal(
                    403 if request.authorization else 401, "GatedRepo", "Access to this model is restricted."
                )
            if path not in repository.history[commit]:
                return _refusal(404, "EntryNotFound", "Entry not found").with_headers(X_Repo_Commit=commit)
            return self._resolve(repository.history[commit][path], path, commit, request)
        return _refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def _find(self, model, revision, request):
        repository = self.repositories.get(model)
        known = request.authorization is not None
        hidden = repository is not None and repository.token is not None and not repository.gated
        if repository is None or (hidden and request.authorization != f"Bearer {repository.token}"):
            return None, None, _refusal(404 if known else 401, "RepoNotFound", "Repository not found")
        commit = repository.resolve(revision)
        if commit is None:
            return None, None, _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit, None

    def _resolve(self, data, path, commit, request):
        sha256 = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            return _serve(data, request.range, {**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        location = f"{self.cdn_url}/blobs/{sha256}?filename={quote(path)}&Signature={self._sign(sha256)}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"', "ETag": f'"{sha256}"'}
        return Reply(302, {**headers, **linked, "Location": location}, b"Found. Redirecting")

    def _answer_cdn(self, request):
        parts = urlsplit(request.path)
        sha256 = parts.path.rpartition("/")[2]
        if request.authorization is not None:  # as S3 does: a signed URL and a header are one too many
            return Reply(400, {}, b"Only one auth mechanism allowed")
        if parse_qs(parts.query).get("Signature") != [self._sign(sha256)]:
            return Reply(403, {}, b"Request has expired")
        return _serve(self._blobs[sha256], request.range, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _sign(self, sha256):
        return hmac.new(self._key, sha256.encode(), hashlib.sha256).hexdigest()


def _tree_entry(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def _sibling(path, data, blobs):
    sibling = {"rfilename": path}
    if blobs:
        sibling |= {"size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        if path.endswith(LARGE):
            sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return sibling


def _serve(data, wanted, headers):
    """Answer a request for the whole of the data or, as RFC 9110 has it, one range of it: last byte included."""
    if wanted is None or "," in wanted or not wanted.startswith("bytes="):
        return Reply(200, headers, data)
    first, last = wanted.removeprefix("bytes=").split("-")
    if not first:  # so many bytes from the end
        first, last = max(len(data) - int(last), 0), ""
    offsets = range(len(data))[int(first) : int(last) + 1 if last else None]
    if not offsets:
        return Reply(416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    content_range = f"bytes {offsets[0]}-{offsets[-1]}/{len(data)}"
    return Reply(206, {**headers, "Content-Range": content_range}, data[offsets[0] : offsets[-1] + 1])


def _json(value):
    return Reply(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _refusal(status, code, message):
    return Reply(status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message}).encode())
