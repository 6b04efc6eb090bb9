"""A repository on the Hub that refuses, breaks or changes under our hands: each in one line, and nothing lost."""

import signal
import threading
import time
from dataclasses import replace as changed

import pytest
from catalogs import entry
from hub_faults import on, status
from hub_server import NOTHING, Reply
from shelves import NAME, held, write_there

from analyzer.base.errors import SourceError
from analyzer.catalog.files import save_entry
from analyzer.publish.publication import publish


@pytest.mark.parametrize(
    ("token", "fragments"),
    [
        (None, ["needs a token", "hf auth login", "--token"]),
        ("nobody", ["does not accept this token", "hf auth login"]),
        ("reader", ["may not write to datasets/me/super-weights", "you must use a write token", "/settings/tokens"]),
        ("stranger", ["may not write to datasets/me/super-weights", "namespace me", "another --repo-id"]),
        ("new\nline", ["the token has characters that no token has"]),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_without_a_token_or_rights(shelf, catalog, token, fragments, exists):
    if exists:
        publish(catalog, NAME, token="writer")
        save_entry(catalog, "x", entry(note="New."))
    before = {name: dict(repository.history) for name, repository in shelf.repositories.items()}
    with pytest.raises(SourceError) as refused:
        publish(catalog, NAME, token=token)
    for fragment in fragments:
        assert fragment in str(refused.value)
    assert str(refused.value).isprintable()
    assert (token or "none") not in str(refused.value).partition("token")[0]
    assert {name: dict(repository.history) for name, repository in shelf.repositories.items()} == before


def test_a_private_repository_of_somebody_else(shelf, catalog):
    publish(catalog, NAME, token="writer", private=True)
    shelf.uploads.tokens["colleague"] = ("me", "write")
    with pytest.raises(SourceError, match="exists, but this token cannot see it"):
        publish(catalog, NAME, token="colleague")


def test_a_commit_by_somebody_else_meanwhile(published, catalog):
    save_entry(catalog, "x", entry(note="New."))
    published.uploads.before_commit = lambda: write_there(published, {"other.txt": b"theirs"})
    with pytest.raises(SourceError, match="somebody else has written to datasets/me/super-weights meanwhile"):
        publish(catalog, NAME, token="writer")
    assert held(published)["other.txt"] == b"theirs"
    published.uploads.before_commit = lambda: None
    assert len(publish(catalog, NAME, token="writer").changes) == 3


def at(path, change):
    """Return a tamperer that changes the replies to requests for one path."""
    return lambda request, reply: change(reply) if path in request.path else reply


@pytest.mark.parametrize(
    ("tamper", "fragment"),
    [
        (at("?blobs", status(503)), "answered HTTP 503; tried 4 times"),
        (at("?blobs", lambda reply: changed(reply, body=b"<html>")), "as the Hub does: a proxy may be in the way"),
        (at("?blobs", lambda reply: changed(reply, cut=NOTHING)), "tried 4 times"),
        (at("?blobs", lambda reply: changed(reply, body=reply.body.replace(b'"sha"', b'"no"'))), "named no commit"),
        (at("?blobs", status(403)), "refused access to datasets/me/super-weights"),
        (at("/resolve/", lambda reply: changed(reply, body=b"?" * len(reply.body))), "is not the file of its listing"),
        (at("/resolve/", lambda reply: changed(reply, body=reply.body * 2)), "the server sent more than"),
        (at("/resolve/", status(404)), "HTTP 404"),
        (at("/validate-yaml", status(400)), "refuses the files"),
        (at("/preupload/", lambda reply: changed(reply, body=b"{}")), "as the Hub does: a proxy may be in the way"),
        (on("cdn", lambda reply: Reply(403, {}, b"no") if not reply.body else reply), "storage answered HTTP 403"),
        (at("/commit/", status(413)), "HTTP 413"),
        (at("/commit/", status(500)), "HTTP 500"),
        (at("/commit/", lambda reply: changed(reply, cut=NOTHING)), "run it again, it uploads only what is not there"),
    ],
    ids=range(14),
)
def test_a_server_that_is_broken_is_one_line(published, catalog, tamper, fragment):
    save_entry(catalog, "x", entry(note="New."))
    published.tamper = tamper
    with pytest.raises(SourceError) as refused:
        publish(catalog, NAME, token="writer")
    assert fragment in str(refused.value)
    assert str(refused.value).isprintable()
    published.tamper = lambda request, reply: reply
    publish(catalog, NAME, token="writer")
    assert held(published)["catalog/x.json"] == (catalog / "x.json").read_bytes()


def test_a_server_that_does_not_answer(published, catalog, monkeypatch):
    monkeypatch.setattr("analyzer.publish.repository.ANSWER_S", 0.2)
    save_entry(catalog, "x", entry(note="New."))
    published.tamper = at("/commit/", lambda reply: changed(reply, cut=NOTHING, stall=True))
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"lost the connection .* run it again"):
        publish(catalog, NAME, token="writer")
    assert time.monotonic() - began < 10  # the server keeps silent for longer


def test_an_upload_that_is_never_answered_is_given_up(published, catalog, monkeypatch):
    monkeypatch.setattr("analyzer.publish.repository.COMMIT_S", 0.5)
    save_entry(catalog, "x", entry(note="New."))
    published.tamper = at("/commit/", lambda reply: changed(reply, cut=NOTHING, stall=True))
    with pytest.raises(SourceError, match=r"did not take the files .* within \d+ s: look whether they are there"):
        publish(catalog, NAME, token="writer")


@pytest.mark.parametrize("path", ["/commit/", "/preupload/"])
def test_ctrl_c_ends_an_upload_that_is_never_answered(published, catalog, superweight, path):
    save_entry(catalog, "x", entry(note="New."))
    asked = threading.Event()

    def silent(reply):
        asked.set()
        return changed(reply, cut=NOTHING, stall=True)

    published.tamper = at(path, silent)
    process = superweight("catalog", "publish", "--repo-id", NAME, "--catalog", catalog, HF_TOKEN="writer")
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "interrupted"


def test_no_network(shelf, catalog, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set, unset it"):
        publish(catalog, NAME, dry_run=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match=r"cannot reach http://127.0.0.1:1"):
        publish(catalog, NAME, dry_run=True)
