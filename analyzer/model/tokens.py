"""Texts as token ids, and in windows that have a loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers

from analyzer.base.errors import ForwardError
from analyzer.model.layouts.gguf_library import read_gguf_tokenizer
from analyzer.model.stock import trusting_nobody

WINDOW_TOKENS = 512
MASKED_EVERY = 7  # of a masked language model's text, so that its loss means something
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
TOKENIZERS = "tokenizer files"


def half(length: int) -> int:
    """Return how many of so many tokens the encoder of an encoder-decoder reads; its decoder says the others."""
    return length // 2


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text as it is judged: `ids` go in, and at each of `places` the model should say the `targets`.

    Of an encoder-decoder the places are the decoder's.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]

    def prefix(self, tokens: int) -> Window:
        """Return its first tokens, judged as they are in the whole of it."""
        judged = sum(place < tokens for place in self.places)
        return replace(self, ids=self.ids[:tokens], places=self.places[:judged], targets=self.targets[:judged])


class Tokens:
    """The tokenizer of one model, read when it is first needed."""

    def __init__(
        self,
        model: str,
        folder: Path,
        *,
        vocabulary: int,
        max_tokens: int | None,
        masked: bool = False,
        gguf: str | None = None,
        start: int | None = None,
    ) -> None:
        """`vocabulary` is how many ids the model knows, `max_tokens` how many positions it has, where it has a limit.

        A `masked` model's windows are judged by every seventh token, masked; others by each next token. `gguf` is the
        file in the folder whose metadata describe the tokenizer, null where it has files of its own. With `start`,
        the token that its decoder starts from, the model is an encoder-decoder, judged by the second half of each.
        """
        self.max_tokens, self.start = max_tokens, start
        self._model, self._folder, self._vocabulary, self._masked = model, folder, vocabulary, masked
        self._gguf = gguf

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of `text`, with the special tokens that the tokenizer adds, or without them.

        Raises ForwardError where the model has no tokenizer or the ids do not fit the model.
        """
        with self._trusting_nobody("cannot read text"):
            ids: list[int] = list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
        if any(i >= self._vocabulary for i in ids):
            raise ForwardError(
                f"{self._model}: its tokenizer makes ids up to {max(ids)}, its embedding has {self._vocabulary} rows"
            )
        return ids

    def judged(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return those that go through the blocks that are judged: all, or what a decoder reads of its own half."""
        return tuple(ids) if self.start is None else (self.start, *ids[half(len(ids)) : -1])

    @property
    def bos(self) -> int:
        """The token that begins a text. Raises ForwardError where the tokenizer has none."""
        found = self._tokenizer.bos_token_id
        if found is None:
            raise ForwardError(f"the tokenizer of {self._model} has no token that begins a text: leave --bos out")
        return int(found)

    @property
    def prefix(self) -> int:
        """The token that stands before a text that has no context: what begins a text, else what ends one."""
        ends = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        found = next((int(each) for each in ends if each is not None), None)
        if found is None:
            raise ForwardError(f"the tokenizer of {self._model} has no token that begins or ends a text: give it one")
        return found

    def texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return each token as the text it stands for."""
        with self._trusting_nobody("cannot make text"):
            return tuple(self._tokenizer.decode([i]) for i in ids)

    def windows(self, text: str) -> list[Window]:
        """Return a text in windows of equal length, the last one shorter.

        Each window begins as the tokenizer begins a text (a beginning-of-sequence token, say), because super
        activations sit at the start. Raises ForwardError where the text is too short to have a loss.
        """
        bare = self.ids(text, special=False)
        prefix = self.ids(text)
        prefix = prefix[: prefix.index(bare[0])] if bare and bare[0] in prefix else []
        length = WINDOW_TOKENS if self.max_tokens is None else min(WINDOW_TOKENS, self.max_tokens)
        step = length - len(prefix)
        if step < 2:
            raise ForwardError(f"{self._model}: config.json leaves it {length} positions, too few for a loss")
        pieces = (prefix + bare[start : start + step] for start in range(0, len(bare), step))
        windows = [window for piece in pieces if (window := self.window(piece)).places]
        if not windows:
            raise ForwardError("the evaluation text has fewer than two tokens: give a longer one (--text)")
        return windows

    def window(self, ids: Sequence[int]) -> Window:
        """Return these ids as they are judged."""
        if self.start is not None:
            said = tuple(ids[half(len(ids)) :]) if len(ids) > 1 else ()
            return Window(tuple(ids), tuple(range(len(said))), said)
        if not self._masked:
            return Window(tuple(ids), tuple(range(len(ids) - 1)), tuple(ids[1:]))
        mask = self._tokenizer.mask_token_id
        if mask is None:
            raise ForwardError(f"{self._model} is a masked language model, but its tokenizer has no mask token")
        places = tuple(range(MASKED_EVERY // 2, len(ids), MASKED_EVERY))
        masked = tuple(mask if place in places else i for place, i in enumerate(ids))
        return Window(masked, places, tuple(ids[place] for place in places))

    @cached_property
    def _tokenizer(self) -> Any:
        if self._gguf is not None:
            with trusting_nobody(f"cannot make the tokenizer of {self._model}", "metadata"):
                return read_gguf_tokenizer(self._folder / self._gguf)
        if not any((self._folder / file).exists() for file in TOKENIZER_FILES):
            raise ForwardError(f"{self._model} has no tokenizer: add its tokenizer files to the folder")
        with trusting_nobody(f"cannot load the tokenizer of {self._model}", TOKENIZERS):
            return transformers.AutoTokenizer.from_pretrained(
                self._folder, trust_remote_code=False, local_files_only=True
            )

    def _trusting_nobody(self, fault: str) -> AbstractContextManager[None]:
        return trusting_nobody(f"the tokenizer of {self._model} {fault}", TOKENIZERS)
