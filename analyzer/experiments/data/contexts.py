"""The contexts whose next token is asked for: LAMBADA's passages, or a file's, without their last word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.base.errors import ForwardError, SourceError
from analyzer.experiments.data.datasets import LAMBADA, Rows, read_file, read_hub

if TYPE_CHECKING:
    from analyzer.model.tokens import Tokens


@dataclass(frozen=True)
class Passages:
    """Texts whose last word is to be said; `name` is the data set's or the file's."""

    name: str
    rows: Rows

    @property
    def facts(self) -> dict[str, Any]:
        """What a result's protocol has of them."""
        return {"data": self.name, **self.rows.facts}


def read_passages(data: str, *, token: str | None) -> Passages:
    """Return the passages that `lambada` or the name of a file stands for: of a plain text its lines.

    Raises SourceError where they cannot be had, or there are none.
    """
    if data == "lambada":
        return Passages(data, read_hub(LAMBADA, token=token, instead="--prompts-data"))
    rows = read_file(Path(data), lines=True)
    if not rows.texts:
        raise SourceError(f"{Path(data).name} has no passage: give some, one a line (--prompts-data)")
    return Passages(Path(data).name, rows)


def contexts_of(passages: Passages, tokens: Tokens, *, most: int) -> list[tuple[int, ...]]:
    """Return the token ids of the first passages without their last space-separated word, as the authors cut them.

    The tokenizer adds the special tokens that it adds by itself. Raises ForwardError where a context has no token, or
    more than the model has positions.
    """
    found = []
    for number, text in enumerate(passages.rows.texts[:most], start=1):
        ids = tuple(tokens.ids(text.rpartition(" ")[0]))
        if not 0 < len(ids) <= (tokens.max_tokens or len(ids)):
            raise ForwardError(
                f"passage {number} of {passages.name} has {len(ids):,} tokens before its last word, which this model "
                "cannot be run on: leave it out (--prompts-data)"
            )
        found.append(ids)
    return found
