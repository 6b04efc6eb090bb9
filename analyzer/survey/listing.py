"""Models as the Hub lists them: by author, tags, library and words of their names, in the Hub's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analyzer.base.errors import SurveyError
from analyzer.source.hub.patience import PASSING, Passing, patiently
from analyzer.source.hub.refusals import hub_errors
from analyzer.source.source import HUB_ID

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelSort_T

SORTS = ("downloads", "likes", "trending_score", "created_at", "last_modified")


def list_hub(
    *,
    author: str | None = None,
    tags: Sequence[str] = (),
    search: str | None = None,
    sort: ModelSort_T | None = None,
    limit: int = 100,
    token: str | None = None,
) -> list[str]:
    """Return the ids of models on the Hub, `limit` at most, in its order; a library is one of `tags`.

    Raises SourceError where the Hub says no, SurveyError where it lists none.
    """
    import huggingface_hub
    from huggingface_hub import errors

    def ask() -> list[str]:
        api = huggingface_hub.HfApi(token=token)
        try:
            listed = api.list_models(author=author, filter=list(tags) or None, search=search, sort=sort, limit=limit)
            return [model.id for model in listed if isinstance(model.id, str) and HUB_ID.fullmatch(model.id)]
        except errors.HfHubHTTPError as error:
            if error.response.status_code in PASSING:
                raise Passing.of_status(error.response) from error
            raise

    with hub_errors("the list of models", None, token=token):
        found = patiently(ask, "the Hub cannot be asked for its list of models", pauses=3)
    if not found:
        raise SurveyError("the Hub lists no such model: give other filters")
    return found
