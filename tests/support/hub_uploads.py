"""What hub_server.py answers to one who writes datasets: creating, preupload, LFS over the CDN, commits, rights."""

import base64
import hashlib
import json
import re
import secrets
from dataclasses import replace
from urllib.parse import urlsplit

import hub_server
import yaml

INITIAL = {".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}  # of a repository that was created


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def tree(files, folder="", recursive=True):
    """Return the entries of a folder as the Hub lists them."""
    entries = {}
    for path, data in sorted(files.items()):
        inside = path.removeprefix(f"{folder}/") if folder else path
        if inside == path and folder:
            continue
        first, deeper, _ = inside.partition("/")
        if deeper and not recursive:
            name = f"{folder}/{first}" if folder else first
            entries[name] = {"type": "directory", "path": name, "size": 0, "oid": git_sha1(name.encode())}
        else:
            entries[path] = _entry(path, data)
    return list(entries.values())


def _entry(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    if path.endswith(hub_server.LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


class Uploads:
    """The writing side of one server. `tokens` says who may do what: token -> (owner, "write" or "read")."""

    def __init__(self, hub, blobs):
        self.tokens = {}
        self.messages = []  # of the commits, in order
        self.before_commit = lambda: None  # called when a commit arrives, before it is looked at
        self._hub = hub
        self._blobs = blobs
        self._signature = secrets.token_hex(8)

    def answer_hub(self, request):
        """Return the reply to a request that has to do with datasets or writing; null for any other."""
        path = urlsplit(request.path).path
        if not path.startswith(("/api/repos/", "/api/datasets/", "/datasets/", "/api/validate-yaml")):
            return None
        if request.authorization is not None and self._who(request) is None and self.tokens:
            return hub_server._refusal(401, "", "Invalid credentials in Authorization header")
        if request.method != "POST":
            return None
        if path == "/api/validate-yaml":
            return self._validate(request)
        if path == "/api/repos/create":
            return self._create(request)
        for pattern, answer in (
            (r"/api/(datasets/[^/]+/[^/]+)/preupload/main", self._preupload),
            (r"/(datasets/[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/(datasets/[^/]+/[^/]+)\.git/info/lfs/objects/verify", self._verify),
            (r"/api/(datasets/[^/]+/[^/]+)/commit/main", self._commit),
        ):
            if match := re.fullmatch(pattern, path):
                repository, _, refusal = self._hub._find(match[1], "main", request)
                refusal = refusal or self._may_write(match[1].split("/")[1], request, "upload to a repository")
                return refusal or answer(match[1], repository, request)
        return hub_server._refusal(404, "", "Sorry, we can't find the page you are looking for.")

    def answer_cdn(self, request):
        """Take an upload to a signed URL; null for anything else."""
        match = re.fullmatch(r"/upload/([0-9a-f]{64})\?signature=(.*)", request.path)
        if not match or request.method != "PUT":
            return None
        if request.authorization is not None:
            return hub_server.Reply(400, {}, b"Only one auth mechanism allowed")
        if match[2] != self._signature or hashlib.sha256(request.body).hexdigest() != match[1]:
            return hub_server.Reply(403, {}, b"SignatureDoesNotMatch")
        self._blobs[match[1]] = request.body
        return hub_server.Reply(200, {"ETag": f'"{match[1]}"'})

    def _who(self, request):
        return self.tokens.get((request.authorization or "").removeprefix("Bearer "))

    def _may_write(self, owner, request, what):
        who = self._who(request)
        if who is None:
            return hub_server._refusal(401, "", "Invalid username or password.")
        if who[1] != "write":
            return hub_server._refusal(403, "", f"Forbidden: you must use a write token to {what}.")
        if who[0] != owner:
            return hub_server._refusal(403, "", f"You don't have the rights to write under the namespace {owner}")
        return None

    def _create(self, request):
        wanted = json.loads(request.body)
        if refusal := self._may_write(wanted["organization"], request, "create a repository"):
            return refusal
        name = f"{wanted['type']}s/{wanted['organization']}/{wanted['name']}"
        if name in self._hub.repositories:
            return hub_server._refusal(409, "", f"You already created this {wanted['type']} repo")
        only = request.authorization.removeprefix("Bearer ") if wanted.get("visibility") == "private" else None
        self._hub.repositories[name] = hub_server.Repository(only)
        self.add_commit(self._hub.repositories[name], INITIAL)
        return hub_server._json({"url": f"{self._hub.url}/{name}", "name": name, "id": name})

    def _validate(self, request):
        content = json.loads(request.body)["content"]
        try:
            valid = isinstance(yaml.safe_load(content.split("---\n")[1]), dict)
        except (IndexError, yaml.YAMLError):
            valid = False
        reply = hub_server._json({"warnings": [], "errors": [] if valid else [{"message": "no metadata"}]})
        return reply if valid else replace(reply, status=400)

    def _preupload(self, _name, repository, request):
        files = repository.history[repository.branches["main"]]
        answers = []
        for file in json.loads(request.body)["files"]:
            large = file["path"].endswith(hub_server.LARGE)
            answer = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (data := files.get(file["path"])) is not None:
                answer["oid"] = hashlib.sha256(data).hexdigest() if large else git_sha1(data)
            answers.append(answer)
        return hub_server._json({"files": answers})

    def _batch(self, name, _repository, request):
        objects = []
        for wanted in json.loads(request.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self._blobs:
                upload = f"{self._hub.cdn_url}/upload/{wanted['oid']}?signature={self._signature}"
                verify = f"{self._hub.url}/{name}.git/info/lfs/objects/verify"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        return hub_server._json({"transfer": "basic", "objects": objects})

    def _verify(self, _name, _repository, request):
        wanted = json.loads(request.body)
        known = len(self._blobs.get(wanted["oid"], b"")) == wanted["size"]
        return hub_server._json({}) if known else hub_server._refusal(404, "", "No such object")

    def _commit(self, name, repository, request):
        self.before_commit()
        lines = [json.loads(line) for line in request.body.splitlines()]
        header = lines.pop(0)["value"]
        head = repository.branches["main"]
        if header.get("parentCommit") not in (None, head):
            return hub_server._refusal(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(repository.history[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self._blobs:
                    return hub_server._refusal(400, "", "Your push was rejected: LFS object is missing")
                files[value["path"]] = self._blobs[value["oid"]]
            elif line["key"] == "deletedFile" and files.pop(value["path"], None) is None:
                return hub_server._refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        commit = self.add_commit(repository, files)
        self.messages.append(header["summary"])
        url = f"{self._hub.url}/{name}/commit/{commit}"
        return hub_server._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def add_commit(self, repository, files):
        """Put a commit on top of a repository, whoever makes it."""
        self._blobs |= {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        commit = hashlib.sha1(repr([sorted(files.items()), len(repository.history)]).encode()).hexdigest()
        repository.history[commit] = files
        repository.branches["main"] = commit
        return commit
