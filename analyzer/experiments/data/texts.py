"""The text that losses are measured on, and its windows, by the protocols that perplexities are published with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.base.errors import ForwardError
from analyzer.experiments.data.datasets import C4, WIKITEXT2, Rows, read_file, read_hub

if TYPE_CHECKING:
    from analyzer.model.tokens import Tokens, Window

LENGTH = 2048  # tokens of a window, where the model has positions for as many
C4_WINDOWS, C4_SEED = 256, 0  # of GPTQ's protocol
TRIES = 10_000  # of documents, where hardly any is long enough


@dataclass(frozen=True)
class Text:
    """What losses are measured on: `name` is the data set's or the file's, `facts` where it is from."""

    name: str
    rows: Rows

    @property
    def facts(self) -> dict[str, Any]:
        """What a result's protocol has of it."""
        return {"data": self.name, **self.rows.facts}


def read_text(data: str, *, token: str | None) -> Text:
    """Return the text that `wikitext2`, `c4` or the name of a file stands for.

    WikiText-2 is its test rows, and a .jsonl file its texts, joined by two line ends, as perplexities are published
    (GPTQ, Wanda, SmoothQuant). Raises SourceError where it cannot be had.
    """
    if data == "c4":
        return Text(data, read_hub(C4, token=token, instead="--data"))
    rows = read_hub(WIKITEXT2, token=token, instead="--data") if data == "wikitext2" else None
    if rows is None:
        rows = read_file(Path(data), lines=False)
    name = data if data == "wikitext2" else Path(data).name
    return Text(name, Rows(("\n\n".join(rows.texts),), rows.facts))


def windows_of(
    text: Text, tokens: Tokens, *, most: int | None, length: int | None, bos: bool
) -> tuple[tuple[Window, ...], int]:
    """Return windows of equal length that follow each other, without the rest at the end, and that length.

    Of C4 they are GPTQ's: slices, drawn by its seed, of documents that are longer. No special tokens are added but,
    with `bos`, one before each window, which is then counted in its length. Raises ForwardError where the model lacks
    positions, or the text tokens.
    """
    limit = tokens.max_tokens
    if length is not None and limit is not None and length > limit:
        raise ForwardError(f"the model has {limit:,} positions: a window cannot take {length:,} (--length)")
    length = length or min(LENGTH, limit or LENGTH)
    first = [tokens.bos] if bos else []
    step = length - len(first)
    pieces = _drawn(text, tokens, step) if text.name == "c4" else _following(text, tokens, step)
    windows: list[Window] = []
    for ids in pieces:
        if most is not None and len(windows) == most:
            break
        window = tokens.window([*first, *ids])
        if window.places:
            windows.append(window)
    if not windows:
        raise ForwardError(
            f"the text {text.name} is too short for a window of {length:,} tokens: give a longer one (--data), or a "
            "smaller --length"
        )
    return tuple(windows), length


def _following(text: Text, tokens: Tokens, step: int) -> Iterator[list[int]]:
    (whole,) = text.rows.texts
    ids = tokens.ids(whole, special=False)
    yield from (ids[start : start + step] for start in range(0, len(ids) - step + 1, step))


def _drawn(text: Text, tokens: Tokens, step: int) -> Iterator[list[int]]:
    """Yield what GPTQ's get_loaders draws for its C4 (IST-DASLab/gptq, datautils.py), by the same random numbers."""
    generator = random.Random(C4_SEED)
    documents = text.rows.texts
    for _ in range(C4_WINDOWS):
        ids = _long_document(documents, lambda document: tokens.ids(document), generator, step)
        if ids is None:
            return
        start = generator.randint(0, max(0, len(ids) - step - 1))
        yield ids[start : start + step]


def _long_document(
    documents: tuple[str, ...], ids_of: Callable[[str], list[int]], generator: random.Random, least: int
) -> list[int] | None:
    """Return the tokens of a drawn document that is long enough, null where as good as none is."""
    for _ in range(TRIES if documents else 0):
        ids = ids_of(documents[generator.randint(0, len(documents) - 1)])
        if len(ids) >= least:
            return ids
    return None
