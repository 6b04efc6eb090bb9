"""What a verification tells over all of its prompts, beside super weights; the field names are the JSON contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True, slots=True)
class LayerMagnitudes:
    """The largest magnitudes of one block, over the positions of all prompts.

    `residual` is that of the stream after the block, `mlp_input` of what its MLPs take, `down_input` of what their down
    projections take, `mlp_output` of what they give, each expert before the router's weight too; null where there is no
    MLP, or it could not be looked into.
    """

    layer: int
    residual: float
    mlp_input: float | None
    down_input: float | None
    mlp_output: float | None


@dataclass(frozen=True, slots=True)
class Fit:
    """How the largest magnitude compares with the largest number of a format, without any scale.

    `where` is the one of LayerMagnitudes' that it is, in `layer`; `overflows_from` the first layer, in the order of the
    run, where any of them is past `limit`, null where none is.
    """

    limit: float
    largest: float
    layer: int
    where: str
    overflows_from: int | None


@dataclass(frozen=True)
class Headroom:
    """The largest magnitudes of the blocks that ran, over so many `prompts`, in the dtype that they ran in.

    `unseen` are the layers that have an MLP which could not be looked into, or not into all of it; `tower` is the one
    that ran, of a model with several.
    """

    prompts: int
    layers: tuple[LayerMagnitudes, ...]
    unseen: tuple[int, ...]
    float16: Fit
    float8_e4m3: Fit
    tower: str | None = None


@dataclass(frozen=True)
class MassiveChannel:
    """A channel of the residual stream with an entry as large as a super activation's, in some layer and prompt.

    `magnitude` is the largest, over all; `magnitudes` those after the blocks of `layers`, where it is as large in any
    prompt. Of all prompts it is so in `prompts`; of these it has a super activation, which persists, in `carrying`, and
    is so at more than half of the positions in `everywhere`.
    """

    channel: int
    magnitude: float
    prompts: int
    carrying: int
    everywhere: int
    layers: tuple[int, ...]
    magnitudes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """A position that carries a super activation in `prompts` of the `of` prompts that are as long."""

    position: int
    prompts: int
    of: int


@dataclass(frozen=True, slots=True)
class SinkToken:
    """A token that carries a super activation in `prompts` of the `of` prompts that have it.

    In `at_start` of these it does so at the first position, in `first` where it first stands after that.
    """

    id: int
    token: str
    prompts: int
    of: int
    at_start: int
    first: int


@dataclass(frozen=True)
class Sinks:
    """Where super activations sit, over so many `prompts`: positions and tokens, the most frequent ones first."""

    prompts: int
    positions: tuple[SinkPosition, ...]
    tokens: tuple[SinkToken, ...]


@dataclass(frozen=True)
class Prefix:
    """Tokens to put in front of every prompt, in this order, so that super activations stay there.

    `outlier_tokens` is at how many positions after the first a prompt carries one, on average, in the layer where most
    do, rounded up.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    outlier_tokens: int


@dataclass(frozen=True, slots=True)
class Routing:
    """Of so many `tokens` of the prompts, how many chose an expert, with what mean weight of the router.

    The weight is null where no token chose it, or the model has it in no place where it can be seen.
    """

    layer: int
    expert: int
    chosen: int
    tokens: int
    mean_weight: float | None
    tower: str | None = None
    mlp: int | None = None


class OverPrompts(TypedDict):
    """The fields of a result that are told over all prompts."""

    headroom: Headroom
    massive_channels: tuple[MassiveChannel, ...]
    sinks: Sinks
    prefix: Prefix | None
    routing: tuple[Routing, ...]
