"""Whom the Hub trusts, and whom it is trusted by: tokens, certificates, other hosts."""

import shutil
import ssl
import subprocess

import pytest
from checkpoints import refused
from hub_server import HubServer, Reply

from analyzer.source.opening import open_model

WEIGHTS = "model.safetensors"


# Tokens


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(hub, folder):
    hub.add("owner/secret", folder, token="hf_right")
    source = open_model("owner/secret", token="hf_right")
    for _ in range(3):
        source.read(WEIGHTS, 0, 8)
        source.read("config.json", 0, 8)
    hub.expire_signed_urls()
    source.read(WEIGHTS, 0, 8)
    assert {r.authorization for r in hub.asked("hub")} == {"Bearer hf_right"}
    assert [r.authorization for r in hub.asked("cdn")] == [None] * 5  # one of them refused


def test_the_token_of_the_environment(hub, folder, monkeypatch):
    hub.add("owner/secret", folder, token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert open_model("owner/secret").read("config.json", 0, 1) == b"{"


def test_the_stored_token(hub, folder, tmp_path, monkeypatch):
    hub.add("owner/secret", folder, token="hf_right")
    (tmp_path / "token").write_text("hf_right\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    assert open_model("owner/secret").read("config.json", 0, 1) == b"{"
    assert "if it is private" in refused(open_model, "owner/secret", token="hf_wrong")  # goes before the stored one


def test_white_space_around_a_token_is_no_part_of_it(hub, folder):
    hub.add("owner/secret", folder, token="hf_right")
    assert open_model("owner/secret", token=" hf_right\r\n").read("config.json", 0, 1) == b"{"
    assert {r.authorization for r in hub.requests} == {"Bearer hf_right"}


@pytest.mark.parametrize("token", ["hf_räight", "", " ", "hf\x00right", "hf_ri\nght"])
def test_a_token_that_cannot_be_sent_is_not_shown(hub, folder, token):
    hub.add("owner/secret", folder, token="hf_right")
    message = refused(open_model, "owner/secret", token=token)
    assert "check --token" in message
    assert "hf_" not in message
    assert hub.requests == []


INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}


def refuse_tokens(request, reply):
    """Answer as the Hub does where a token has expired: also of a public model."""
    return Reply(401, INVALID, b"{}") if request.authorization and request.origin == "hub" else reply


@pytest.mark.parametrize(
    ("how", "which", "without"),
    [
        ("--token", "of --token", "leave it out"),
        ("HF_TOKEN", "of HF_TOKEN", "unset it"),
        ("HUGGING_FACE_HUB_TOKEN", "of HUGGING_FACE_HUB_TOKEN", "unset it"),
        ("stored", "stored by `hf auth login`", "run `hf auth logout`"),
    ],
)
def test_a_token_that_has_expired(hub, folder, tmp_path, monkeypatch, how, which, without):
    hub.add("owner/tiny", folder)
    hub.tamper = refuse_tokens
    if how.isupper():
        monkeypatch.setenv(how, "hf_old")
    (tmp_path / "token").write_text("hf_old")
    if how != "--token":
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    message = refused(open_model, "owner/tiny@main", token="hf_old" if how == "--token" else None)
    assert message == (
        f"the Hub does not accept the token {which} for owner/tiny@main (HTTP 401: Invalid credentials in Authoriza"
        f"tion header): it is invalid or has expired, renew it, or {without}: a public model needs none"
    )
    assert len(hub.requests) == 1


def test_a_token_that_expires_meanwhile(hub, folder):
    hub.add("owner/tiny", folder)
    source = open_model("owner/tiny", token="hf_old")
    hub.tamper = refuse_tokens
    assert "the Hub does not accept the token of --token for owner/tiny (HTTP 401: Inv" in refused(
        source.read, WEIGHTS, 0, 8
    )


def test_without_a_token_it_is_not_to_blame(hub, folder):
    hub.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: Reply(401, INVALID)
    message = refused(open_model, "owner/tiny")
    assert message.startswith("the Hub refused access to owner/tiny (HTTP 401: Invalid credentials in Author")
    assert message.endswith("): log in with `hf auth login` or pass --token")


# Other hosts


@pytest.fixture
def other():
    """Another Hub, to which the first one sends on."""
    server = HubServer()
    yield server
    server.stop()


def test_another_host_serves_public_models(hub, other, folder):
    other.add("owner/tiny", folder)
    hub.tamper = lambda request, reply: Reply(308, {"Location": other.url + request.path})
    source = open_model("owner/tiny", token="hf_right")
    for filename in (WEIGHTS, "config.json"):
        for _ in range(2):
            assert source.read(filename, 2, 9) == (folder / filename).read_bytes()[2:9]
    assert {request.authorization for request in other.requests} == {None}


@pytest.mark.parametrize("token", [None, "hf_right"])
def test_another_host_gets_no_token(hub, other, folder, token):
    other.add("owner/gated", folder, token="hf_right", gated=True)
    other.add("owner/secret", folder, token="hf_right")
    hub.tamper = lambda request, reply: Reply(308, {"Location": other.url + request.path})
    said = (
        f"{hub.url} sends on to {other.url} for {{}}, which refuses it (HTTP 401) to whom it does not know, and only "
        f"{hub.url} gets the token: set HF_ENDPOINT={other.url}"
    )
    assert refused(open_model, "owner/secret", token=token) == said.format("owner/secret")
    source = open_model("owner/gated", token=token)  # anybody may list it
    for filename in ("config.json", WEIGHTS):
        assert refused(source.read, filename, 0, 8) == said.format("owner/gated")
    assert {request.authorization for request in other.requests} == {None}


# Certificates


@pytest.fixture
def untrusted(hub, tmp_path, monkeypatch):
    """Give the Hub a certificate that only its own file vouches for; returns the file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    hub.use_tls(context)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    return certificate


def test_a_certificate_that_is_not_trusted(hub, folder, untrusted, superweight):
    hub.add("owner/tiny", folder)
    said = (
        f"there is no folder owner/tiny, and the Hub cannot be asked for it: {hub.url} has a certificate that is not "
        "trusted (self-signed certificate): set SSL_CERT_FILE to a file with your network's certificates"
    )
    assert refused(open_model, "owner/tiny") == said
    assert hub.connections["hub"] == 1  # no further try would make it right
    process = superweight("scan", "owner/tiny", "--json", REQUESTS_CA_BUNDLE=str(untrusted))
    assert process.communicate() == ("", f"error: {said} (REQUESTS_CA_BUNDLE is not looked at)\n")
    process = superweight("scan", "owner/tiny", "--json", SSL_CERT_FILE=str(untrusted))
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert '"model": "owner/tiny"' in out


@pytest.mark.parametrize("there", [True, False])
def test_a_file_of_certificates_that_is_none(hub, folder, tmp_path, superweight, there):
    hub.add("owner/tiny", folder)
    if there:
        (tmp_path / "none.pem").write_text("nothing")
    out, err = superweight("scan", "owner/tiny", SSL_CERT_FILE=str(tmp_path / "none.pem")).communicate()
    assert out == ""
    assert err == (
        f"error: SSL_CERT_FILE names {tmp_path / 'none.pem'}, which is no file of certificates: correct or unset it\n"
    )
