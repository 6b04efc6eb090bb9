"""Every way in which the Hub says no, each in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from analyzer.base.errors import SourceError, shown

if TYPE_CHECKING:
    pass


@contextmanager
def hub_errors(
    model: str, revision: str | None, *, path: str | None = None, commit: str | None = None
) -> Iterator[None]:
    """Turn every way the Hub says no into one line."""
    import httpx2
    from huggingface_hub import constants, errors

    name = f"{model}@{revision}" if revision else model
    login = "log in with `hf auth login` or pass --token"
    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceError(f"{name} is gated: accept its terms at {constants.ENDPOINT}/{model}, then {login}") from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{model} has no revision {shown(revision)} on the Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"there is no folder {name}, and no such model on the Hub (if it is private, {login})"
        ) from error
    except errors.DisabledRepoError as error:
        raise SourceError(f"{name} was disabled on the Hub") from error
    except errors.LocalEntryNotFoundError as error:  # neither downloaded before nor to be had now
        if constants.HF_HUB_OFFLINE:
            raise SourceError(
                f"{name} is not in the Hub's cache, and HF_HUB_OFFLINE is set: unset it, or download the model first"
            ) from error
        reason = shown(error.__cause__ or error)
        raise SourceError(f"cannot download {name} from {constants.ENDPOINT} ({reason}): check the network") from error
    except errors.EntryNotFoundError as error:
        raise SourceError(
            f"{name} has no file {shown(path)} at commit {commit}, though it lists one: try again later"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(f"cannot reach the Hub for {name}: HF_HUB_OFFLINE is set, unset it") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SourceError(f"the Hub refused access to {name} (HTTP {status}): {login}") from error
        thing = f"{name}, file {shown(path)}" if path else name
        raise SourceError(f"the Hub answered HTTP {status} for {thing}: try again later") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{shown(name)} is not a Hub id of the form owner/name") from error
    except (httpx2.LocalProtocolError, UnicodeEncodeError) as error:  # whose messages hold the token
        raise SourceError("the token has characters that no token has: check --token, or HF_TOKEN") from error
    except httpx2.HTTPError as error:
        reason = shown(error) or type(error).__name__
        raise SourceError(f"cannot reach {constants.ENDPOINT} for {name} ({reason}): check the network") from error
    except OSError as error:
        raise SourceError(f"cannot download {name}: {shown(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # what the client's parser lets out
        raise SourceError(
            f"{constants.ENDPOINT} did not answer for {name} as the Hub does: a proxy may be in the way"
        ) from error
