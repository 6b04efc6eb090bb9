"""What the Hub says no to, each in one line that names the thing; of tokens and other hosts see test_trust.py."""

import pytest
from checkpoints import refused
from hub_server import Reply

from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


def test_what_the_hub_says_no_to(hub, folder):
    hub.add("owner/tiny", folder)
    hub.add("owner/secret", folder, token="hf_right")
    for model in ["owner/missing", "owner/secret"]:
        for token in [None, "hf_wrong"]:
            message = refused(open_model, model, token=token)
            assert f"there is no folder {model}, and no such model on the Hub (if it is private, log in" in message
    assert "owner/tiny has no revision v9 on the Hub" in refused(open_model, "owner/tiny@v9")
    assert "not a Hub id" in refused(open_model, "owner/tiny--x")
    source = open_model("owner/tiny")
    assert f"has no file gone.json at commit {source.commit}" in refused(source.read, "gone.json", 0, 8)


def test_gated_models(hub, folder):
    # Anybody may list a gated repository's files, only those who were let in may read them.
    hub.add("owner/gated", folder, token="hf_right", gated=True)
    for token in [None, "hf_wrong"]:
        message = refused(open_model("owner/gated", token=token).read, "config.json", 0, 8)
        assert f"owner/gated is gated: accept its terms at {hub.url}/owner/gated, then log in" in message
        assert "is gated" in refused(open_model("owner/gated", token=token).folder, [WEIGHTS])
    assert open_model("owner/gated", token="hf_right").read("config.json", 0, 1) == b"{"


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            401,
            {"X-Error-Message": "Invalid username"},
            "refused access to owner/tiny (HTTP 401: Invalid username Log in): ",
        ),
        (403, {}, "refused access to owner/tiny (HTTP 403: Log in): log in with"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "owner/tiny was disabled on the Hub"),
        (404, {}, "answered HTTP 404 for owner/tiny: Log in: try again later"),
        (200, {"Content-Type": "text/html"}, "a proxy may be in the way"),
    ],
)
def test_other_refusals(hub, folder, status, headers, said):
    hub.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: Reply(status, headers, b"<html>Log in</html>")
    assert said in refused(open_model, "owner/tiny")
    assert len(hub.requests) == 1


@pytest.mark.parametrize("body", [b"[]", b"{}", b"null", b'{"id": "owner/tiny", "siblings": [{}]}'])
def test_json_that_is_not_a_model(hub, body):
    hub.tamper = lambda request, reply: Reply(200, {}, body)
    assert "did not answer for owner/tiny as the Hub does" in refused(open_model, "owner/tiny")


@pytest.mark.parametrize("sha", ["null", '""', '"main"', '"../x"'])
def test_no_commit(hub, sha):
    hub.tamper = lambda request, reply: Reply(200, {}, b'{"id": "owner/tiny", "sha": %s}' % sha.encode())
    assert "the Hub named no commit for owner/tiny" in refused(open_model, "owner/tiny")


def test_no_network(hub):
    hub.stop()
    message = refused(open_model, "owner/tiny")
    # What was meant may be a folder, mistyped.
    assert message.startswith(
        f"there is no folder owner/tiny, and the Hub cannot be asked for it: cannot reach {hub.url} ("
    )
    assert message.endswith("tried 4 times over 0 s: check the network, then try again")
