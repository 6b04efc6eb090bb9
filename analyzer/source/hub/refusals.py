"""Every way in which the Hub says no, each in one line."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from analyzer.base.errors import GatedError, GoneError, NetworkError, SourceError, shown
from analyzer.source.hub.patience import certificate_fault, first_words, origin_of

if TYPE_CHECKING:
    import httpx2
    import huggingface_hub

LOGIN = "log in with `hf auth login` or pass --token"


@contextmanager
def hub_errors(
    model: str, revision: str | None, *, path: str | None = None, commit: str | None = None, token: str | None = None
) -> Iterator[None]:
    """Turn every way the Hub says no into one line.

    `commit` is known once the Hub has listed the model; `token` is the one that was passed, not the client's own.
    """
    import httpx2
    from huggingface_hub import constants, errors

    name = f"{model}@{revision}" if revision else model
    try:
        yield
    except errors.LocalEntryNotFoundError as error:  # neither downloaded before nor to be had now
        if constants.HF_HUB_OFFLINE:
            raise GoneError(
                f"{name} is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or download the model first"
            ) from error
        if untrusted := certificate_fault(error):
            raise NetworkError(f"cannot download {name}: {constants.ENDPOINT} {untrusted}") from error
        reason = shown(error.__cause__ or error)
        raise NetworkError(f"cannot download {name} from {constants.ENDPOINT} ({reason}): check the network") from error
    except errors.HfHubHTTPError as error:
        if line := _elsewhere(name, error.response) or _bad_token(name, error, token):
            raise GatedError(line) from error
        raise _refusal(model, revision, path, commit, error) from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(f"cannot reach the Hub for {name}: HF_HUB_OFFLINE is set, unset it") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{shown(name)} is not a Hub id of the form owner/name") from error
    except (httpx2.LocalProtocolError, UnicodeEncodeError) as error:  # whose messages hold the token
        raise GatedError("the token has characters that no token has: check --token, or HF_TOKEN") from error
    except httpx2.HTTPError as error:
        reason = shown(error) or type(error).__name__
        raise NetworkError(f"cannot reach {constants.ENDPOINT} for {name} ({reason}): check the network") from error
    except OSError as error:
        certificates = os.environ.get("SSL_CERT_FILE")
        if certificates and (isinstance(error, ssl.SSLError) or not Path(certificates).is_file()):
            raise SourceError(
                f"SSL_CERT_FILE names {shown(certificates)}, which is no file of certificates: correct or unset it"
            ) from error
        raise SourceError(f"cannot download {name}: {shown(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # what the client's parser lets out
        raise NetworkError(
            f"{constants.ENDPOINT} did not answer for {name} as the Hub does: a proxy may be in the way"
        ) from error


def _refusal(
    model: str, revision: str | None, path: str | None, commit: str | None, error: huggingface_hub.errors.HfHubHTTPError
) -> SourceError:
    """Return the error that a refusal is, of a model that was listed where `commit` is known."""
    from huggingface_hub import constants, errors

    name = f"{model}@{revision}" if revision else model
    status, said = error.response.status_code, _said(error)
    match error:
        case errors.GatedRepoError():  # before RepositoryNotFoundError, of which it is one
            return GatedError(f"{name} is gated: accept its terms at {constants.ENDPOINT}/{model}, then {LOGIN}")
        case errors.RevisionNotFoundError():
            return GoneError(f"{model} has no revision {shown(revision)} on the Hub")
        case errors.RepositoryNotFoundError() if commit is None:
            return GoneError(f"there is no folder {name}, and no such model on the Hub (if it is private, {LOGIN})")
        case errors.DisabledRepoError():
            return GoneError(f"{name} was disabled on the Hub")
        case errors.RemoteEntryNotFoundError():
            return GoneError(
                f"{name} has no file {shown(path)} at commit {commit}, though it lists one: try again later"
            )
    thing = f"{name}, file {shown(path)}" if path else name
    if status in (401, 403) and commit is None:
        return GatedError(f"the Hub refused access to {name} (HTTP {status}{said}): {LOGIN}")
    if status in (401, 403):
        return GatedError(f"the Hub refused {thing} (HTTP {status}{said}), though it lists the model: try again later")
    return NetworkError(f"the Hub answered HTTP {status} for {thing}{said}: try again later")


def _bad_token(name: str, error: huggingface_hub.errors.HfHubHTTPError, token: str | None) -> str | None:
    """Return what to say where the token is what the Hub does not accept: then it says no to public models as well."""
    headers = error.response.headers
    if error.response.status_code != 401 or "X-Error-Code" in headers or not _with_token(error.response):
        return None
    variable = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    if token is not None:
        which, without = "of --token", "leave it out"
    elif variable is not None:
        which, without = f"of {variable}", "unset it"
    else:
        which, without = "stored by `hf auth login`", "run `hf auth logout`"
    return (
        f"the Hub does not accept the token {which} for {name} (HTTP 401{_said(error)}): it is invalid or has expired, "
        f"renew it, or {without}: a public model needs none"
    )


def _elsewhere(name: str, response: httpx2.Response) -> str | None:
    """Return what to say where another Hub, to which this one sends on, wants the token, which it must not get."""
    import httpx2
    from huggingface_hub import constants

    origin = origin_of(response.url)
    if response.status_code not in (401, 403) or origin == origin_of(httpx2.URL(constants.ENDPOINT)):
        return None
    return (
        f"{constants.ENDPOINT} sends on to {origin} for {name}, which refuses it (HTTP {response.status_code}) to whom "
        f"it does not know, and only {constants.ENDPOINT} gets the token: set HF_ENDPOINT={origin}"
    )


def _with_token(response: httpx2.Response) -> bool:
    return "Authorization" in response.request.headers


def _said(error: huggingface_hub.errors.HfHubHTTPError) -> str:
    """Return the first words of a refusal, to be put after its status."""
    said = first_words(error.server_message or "")
    return f": {said}" if said else ""
