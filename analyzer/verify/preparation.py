"""What a verification runs: its settings as token ids; all that it needs of texts and of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate, Unit
from analyzer.scan.records import Outlier
from analyzer.verify.settings import VerifySettings, bundled_prompts

if TYPE_CHECKING:
    from analyzer.model.tokens import Tokens, Window

MIN_TOKENS = 3  # of fewer, a layer's median says little


@dataclass(frozen=True)
class Prepared:
    """What a verification runs: token ids, and the windows of the text.

    `tokens` are the prompt's as text, of an encoder-decoder those that the decoder reads. `bare_prompts` are the
    prompts without special tokens, null where the tokenizer adds none. `judged` gives of a prompt's ids those that the
    blocks which are judged read, `texts` what token ids stand for; `begin` is the token that begins a text, or else
    ends one, null without any.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    windows: tuple[Window, ...]
    prompts: tuple[tuple[int, ...], ...]
    bare_prompts: tuple[tuple[int, ...], ...] | None
    judged: Callable[[Sequence[int]], tuple[int, ...]]
    texts: Callable[[Sequence[int]], tuple[str, ...]]
    begin: int | None


@dataclass(frozen=True)
class Statics:
    """What the static scan knows of a model of this name: candidates, and answers about weights.

    `outliers` are screened for their effect too. `rank` gives the rank by |W| of any coordinates, `nearest` so many
    weights of other rows that are nearest to one in magnitude, `shape` the (rows, cols) of a weight's projection.
    `asked` are the values of the weights that were asked for, `units` the rows, columns and experts; `nearest_units`
    gives so many others that are nearest to a row or column in norm, `experts` those of the same layer.
    """

    model: str
    outliers: Sequence[Outlier]
    rank: Callable[[Sequence[Coordinate]], Mapping[Coordinate, int]]
    nearest: Callable[[Coordinate, int], Sequence[Coordinate]]
    shape: Callable[[Coordinate], tuple[int, int]]
    nearest_units: Callable[[Unit, int], Sequence[Unit]] = lambda *_: ()
    experts: Callable[[Unit], Sequence[Unit]] = lambda _: ()
    asked: Mapping[Coordinate, float] = field(default_factory=dict)
    units: Sequence[Unit] = ()

    @property
    def is_asked(self) -> bool:
        """Whether weights or units were asked for, and so none is searched for."""
        return bool(self.asked or self.units)


def prepare(settings: VerifySettings, tokens: Tokens, model: str) -> Prepared:
    """Return what to run. Raises ForwardError where prompt or text do not fit the model of this name."""
    ids = tokens.ids(settings.prompt)
    judged = tokens.judged(ids)
    if len(judged) < MIN_TOKENS:
        least = MIN_TOKENS if tokens.start is None else 2 * MIN_TOKENS - 1
        raise ForwardError(f"the prompt has {len(ids)} of at least {least} tokens: give a longer one (--prompt)")
    if tokens.max_tokens is not None and len(ids) > tokens.max_tokens:
        raise ForwardError(
            f"the prompt has {len(ids)} tokens, {model} has {tokens.max_tokens} positions: shorten it (--prompt)"
        )
    prompts = settings.prompts
    if prompts is None:
        prompts = () if settings.early_stop or settings.is_asked else bundled_prompts()
    begin = None
    with suppress(ForwardError):
        begin = tokens.prefix
    whole, bare = (_all_ids(tokens, prompts, special=special) for special in (True, False))
    return Prepared(
        ids=tuple(ids),
        tokens=tokens.texts(judged),
        windows=() if settings.early_stop else tuple(tokens.windows(settings.text)),
        prompts=whole,
        bare_prompts=None if bare == whole else bare,
        judged=tokens.judged,
        texts=tokens.texts,
        begin=begin,
    )


def _all_ids(tokens: Tokens, prompts: Sequence[str], *, special: bool) -> tuple[tuple[int, ...], ...]:
    most = tokens.max_tokens or 1 << 20
    return tuple(tuple(tokens.ids(prompt, special=special)[:most]) for prompt in prompts)
