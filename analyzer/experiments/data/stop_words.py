"""Words that carry no content of their own, as a list with a version: what a mass of stop words is a mass of."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

VERSION = 1  # of the list: another list has another number


def stop_ids(texts: Sequence[str]) -> list[int]:
    """Return the ids of a vocabulary's tokens that are stop words, marks or white space, in any case."""
    listed = resources.files("analyzer.experiments.data").joinpath("stop_words.txt").read_text("utf-8")
    words = {"", *listed.split()}
    return [number for number, text in enumerate(texts) if text.strip().lower() in words]
