"""A real HTTP server that speaks the Hub's protocol: one origin for the Hub, another port for its CDN.

It knows nothing of the analyzer. Tests read `requests`, `body_bytes`, `connections` and `most_at_once` to see what a
client really did, and set `tamper` to make it answer as a broken proxy or CDN would.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_uploads import Uploads, git_sha1, tree

LARGE = (".safetensors", ".gguf", ".bin", ".parquet")  # what the Hub keeps outside of git, behind a redirect to the CDN
NOTHING = -1  # of a reply: not even its headers


@dataclass(frozen=True)
class Request:
    origin: str  # "hub" or "cdn"
    method: str
    path: str
    range: str | None
    authorization: str | None
    accept_encoding: str | None = None
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict
    body: bytes = b""
    cut: int | None = None  # break the connection off after that many bytes of the body, or with NOTHING sent
    reset: bool = False  # by a TCP reset in place of an orderly end
    stall: bool = False  # or rather keep it open, and send no more
    drip: float = 0.0  # seconds between the single bytes of the body

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
    request_queue_size = 128

    def handle_error(self, request, client_address):
        # A client may leave when it has seen enough, or when it does not trust the certificate.
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


class HubServer:
    def __init__(self):
        self.requests = []
        self.body_bytes = Counter()  # by origin, of what was served of files
        self.connections = Counter()  # by origin
        self.most_at_once = 0  # requests
        self.repositories = {}
        self.renamed = {}  # old id -> new id
        self.listed = {}  # model -> what its listing says of it: tags, downloads
        self.lost = set()  # files that are listed but not there
        self.tamper = lambda request, reply: reply
        self.delay = 0.0  # seconds before each reply
        self.small_files_elsewhere = False  # behind a redirect to a cache, on the same origin
        self.uses_of_a_url = None  # how often a signed URL serves before it expires
        self.bind_range = False  # a signed URL serves only the range that it was made for
        self._at_once = 0
        self._issued = 0
        self._used = Counter()
        self._recording = threading.Lock()
        self._stopping = threading.Event()
        self._key = secrets.token_bytes(16)
        self._blobs = {}  # sha256 -> bytes
        self.uploads = Uploads(self, self._blobs)
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

    def use_tls(self, context):
        """Serve over TLS from now on."""
        for server in self._servers:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.url, self.cdn_url = (url.replace("http:", "https:") for url in (self.url, self.cdn_url))

    def expire_signed_urls(self):
        self._key = secrets.token_bytes(16)

    def asked(self, origin, method="GET"):
        return [request for request in self.requests if (request.origin, request.method) == (origin, method)]

    def tag(self, data, *, large):
        """Return the ETag of a file's content, without its quotes."""
        return (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()

    def forget(self):
        """Begin to count anew, once the replies on their way are out."""
        while self._at_once:
            time.sleep(0.001)
        with self._recording:
            self.requests, self.most_at_once = [], 0
            self.body_bytes.clear()
            self.connections.clear()

    def stop(self):
        self._stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _start(self, origin, answer):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each reply waits 40 ms for the client's acknowledgement

            def setup(self):
                super().setup()
                with hub._recording:
                    hub.connections[origin] += 1

            def do_GET(self):
                names = ("Range", "Authorization", "Accept-Encoding")
                named = (self.headers.get(name) for name in names)
                request = Request(origin, self.command, self.path, *named, self.rfile.read(self.length()))
                with hub._recording:
                    hub.requests.append(request)
                    hub._at_once += 1
                    hub.most_at_once = max(hub.most_at_once, hub._at_once)
                try:
                    time.sleep(hub.delay)
                    reply = hub.tamper(request, answer(request))
                    self.send(reply)
                finally:
                    with hub._recording:
                        hub._at_once -= 1
                if reply.stall:
                    hub._stopping.wait(60)
                if reply.reset:  # what is not said orderly is said by the kernel, at once
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    os.close(self.connection.detach())
                self.close_connection = reply.cut is not None or reply.stall

            def length(self):
                return int(self.headers.get("Content-Length", 0))

            def send(self, reply):
                if reply.cut == NOTHING:
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                body = b"" if self.command == "HEAD" else reply.body[: reply.cut]
                if reply.status == 206:
                    with hub._recording:
                        hub.body_bytes[origin] += len(body)
                if reply.drip:
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        time.sleep(reply.drip)
                elif body:
                    self.wfile.write(body)

            do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        server = QuietServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _answer_hub(self, request):
        parts = urlsplit(request.path)
        if (reply := self.uploads.answer_hub(request)) is not None:
            return reply
        for old, new in self.renamed.items():
            if f"/{old}/" in request.path or request.path.startswith(f"/api/models/{old}"):
                return Reply(307, {"Location": request.path.replace(old, new, 1)}, b"Redirecting")
        if parts.path == "/api/models":
            return self._list(parse_qs(parts.query), request.path)
        if match := re.fullmatch(
            r"/api/(?:models/|(?=datasets/))((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?",
            parts.path,
        ):
            model, kind, revision, folder = match.groups()
            repository, commit, refusal = self._find(model, unquote(revision or "main"), request)
            if refusal:
                return refusal
            files = repository.history[commit]
            if kind == "tree":
                return _json(tree(files, unquote(folder or ""), "recursive=true" in parts.query.lower()))
            blobs = parse_qs(parts.query).get("blobs", ["false"])[0].lower() == "true"
            siblings = [_sibling(path, data, blobs) for path, data in files.items()]
            return _json(
                {
                    "id": model.removeprefix("datasets/"),
                    "modelId": model,
                    "sha": commit,
                    "siblings": siblings,
                    "gated": repository.gated,
                    "private": repository.token is not None,
                }
            )
        if match := re.fullmatch(
            r"(?:/api/resolve-cache/models/([^/]+/[^/]+)|/((?:datasets/)?[^/]+/[^/]+)/resolve)/([^/]+)/(.+)", parts.path
        ):
            cached, model = match[1], match[1] or match[2]
            revision, path = unquote(match[3]), unquote(match[4])
            repository, commit, refusal = self._find(model, revision, request)
            if refusal:
                return refusal
            if repository.gated and request.authorization != f"Bearer {repository.token}":
                return _refusal(
                    403 if request.authorization else 401, "GatedRepo", "Access to this model is restricted."
                )
            if path not in repository.history[commit] or path in self.lost:
                return _refusal(404, "EntryNotFound", "Entry not found").with_headers(X_Repo_Commit=commit)
            if self.small_files_elsewhere and not cached and not path.endswith(LARGE):
                location = f"/api/resolve-cache/models/{model}/{commit}/{quote(path)}"
                return Reply(307, {"Location": location, "X-Repo-Commit": commit}, b"Redirecting")
            return self._resolve(repository.history[commit][path], path, commit, request)
        return _refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def _list(self, query, path, page=2):
        """Answer with the models that pass the filters, so many a page; the link to the next one is a header."""
        names = [name for name in self.repositories if not name.startswith("datasets/")]
        about = {name: {"tags": [], "downloads": 0, **self.listed.get(name, {})} for name in names}
        names = [name for name in names if query.get("search", [""])[0].lower() in name.lower()]
        names = [name for name in names if query.get("author", [name.partition("/")[0]])[0] == name.partition("/")[0]]
        names = [name for name in names if set(query.get("filter", [])) <= set(about[name]["tags"])]
        if query.get("sort") == ["downloads"]:
            names.sort(key=lambda name: -about[name]["downloads"])
        start = int(query.get("cursor", ["0"])[0])
        reply = _json([{"id": name, **about[name]} for name in names[start : start + page]])
        if names[start + page :]:
            bare = re.sub(r"[?&]cursor=\d+", "", path)
            url = f"{self.url}{bare}{'&' if '?' in bare else '?'}cursor={start + page}"
            reply = reply.with_headers(Link=f'<{url}>; rel="next"')
        return reply

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
        with self._recording:
            self._issued += 1
        policy = json.dumps([self._issued, request.range if self.bind_range else None])
        location = (
            f"{self.cdn_url}/blobs/{sha256}?filename={quote(path)}&Policy={quote(policy)}"
            f"&Signature={self._sign(sha256, policy)}"
        )
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"', "ETag": f'"{sha256}"'}
        return Reply(302, {**headers, **linked, "Location": location}, b"Found. Redirecting")

    def _answer_cdn(self, request):
        parts = urlsplit(request.path)
        sha256 = parts.path.rpartition("/")[2]
        if (reply := self.uploads.answer_cdn(request)) is not None:
            return reply
        if request.authorization is not None:  # as S3 does: a signed URL and a header are one too many
            return Reply(400, {}, b"Only one auth mechanism allowed")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if query.get("Signature") != self._sign(sha256, query.get("Policy", "")):
            return Reply(403, {}, b"Request has expired")
        number, bound_to = json.loads(query["Policy"])
        with self._recording:
            self._used[number] += 1
            expired = self.uses_of_a_url is not None and self._used[number] > self.uses_of_a_url
        if expired or bound_to not in (None, request.range):
            return Reply(403, {}, b"Request has expired")
        # A CDN that may compress a file has no ranges of it.
        wanted = request.range if request.accept_encoding == "identity" else None
        return _serve(self._blobs[sha256], wanted, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def _sign(self, sha256, policy):
        return hmac.new(self._key, f"{sha256} {policy}".encode(), hashlib.sha256).hexdigest()


def _sibling(path, data, blobs):
    sibling = {"rfilename": path}
    if blobs:
        sibling |= {"size": len(data), "blobId": git_sha1(data)}
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
