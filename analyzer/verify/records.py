"""What a verification returns; the field names are the JSON contract."""

from __future__ import annotations

from dataclasses import dataclass

from analyzer.base.records import Coordinate


@dataclass(frozen=True)
class LayerMaxima:
    """A row of the paper's Figure 3 (arXiv 2411.07191): signed values of largest magnitude over all positions.

    Input and output are the down projection's; `residual_max` is the residual stream's after the block.
    """

    layer: int
    input_max: float
    input_col: int
    output_max: float
    output_row: int
    residual_max: float
    residual_channel: int


@dataclass(frozen=True)
class SuperActivation:
    """A residual-stream entry that dwarfs its layer's median from `layer` through `last_layer`.

    `value` is the entry of largest magnitude in that run, `median_ratio` its magnitude over the median of the
    same layer.
    """

    layer: int
    channel: int
    position: int
    token: str
    value: float
    median_ratio: float
    last_layer: int


@dataclass(frozen=True, slots=True)
class OutlierFeature:
    """A channel that is as large as a super activation at more than half of the positions."""

    channel: int
    layer: int
    last_layer: int
    positions: int


@dataclass(frozen=True)
class Write:
    """A block that changes a super activation's channel, at its position, by a multiple of the median.

    `change` is signed; `largest_share` the largest part that one weight has in the down projection's output there.
    """

    layer: int
    channel: int
    position: int
    change: float
    largest_share: float


@dataclass(frozen=True)
class SuperWeight:
    """A coordinate judged by running the model; losses are nats per token, a mean over `loss_tokens` tokens.

    `status` is "confirmed", "coincident" or "rejected", `effect` "critical" or "inert", null where no loss was
    measured; `static_rank` is its rank by magnitude among the weights of all down projections of its tower. `share` is
    its part of what the MLP adds at the super activation's position and row; `activation_collapse` the part of the
    super activation's magnitude that zeroing takes away. `round` is 1 where it shows in the untouched model,
    else more: it was masked until those of the earlier rounds were zeroed. Of the losses with a control weight zeroed
    `control_loss_max` is the worst, the other two the worst of those of nearest magnitude and of the random ones.
    """

    layer: int
    expert: int | None
    row: int
    col: int
    value: float
    share: float
    static_rank: int | None
    status: str
    effect: str | None
    activation_collapse: float | None
    loss: float | None
    loss_zeroed: float | None
    control_loss_max: float | None
    loss_tokens: int | None
    control_loss_nearest: float | None = None
    control_loss_random: float | None = None
    round: int | None = None
    tower: str | None = None
    mlp: int | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)


@dataclass(frozen=True)
class JointZeroing:
    """The loss with every confirmed super weight zeroed at once."""

    coordinates: tuple[Coordinate, ...]
    loss_zeroed: float


@dataclass(frozen=True)
class Masking:
    """What becomes of the other super activations, as (channel, position), when one weight is zeroed."""

    coordinate: Coordinate
    vanished: tuple[tuple[int, int], ...]
    appeared: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Profile:
    """A super activation through the layers, with and without the weight that writes it (the paper's Figure 4)."""

    coordinate: Coordinate
    position: int
    layers: tuple[int, ...]
    values: tuple[float, ...]
    values_zeroed: tuple[float, ...]


@dataclass(frozen=True)
class Recurrence:
    """In how many prompts a super activation of this layer and channel appears, and at which positions.

    `without_bos` counts them where the prompts come without special tokens; null where the tokenizer adds none.
    """

    layer: int
    channel: int
    prompts: int
    positions: tuple[int, ...]
    without_bos: int | None


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` prints.

    `model` is its name, `revision` the one that was asked for, `commit` the Hub's, null for other folders;
    `model_type` is config.json's. `tokens` are those of `prompt`, as text; `dtype` and `device` are what the model ran
    in and on. `verdict` is "found" where a super weight is confirmed, critical or not, else "none".

    `layers` has the largest values of each block that ran, `super_activations` the largest first, `outlier_features`
    what is as large at too many positions to be one, `writes` the blocks that made the activations. `super_weights`
    are critical ones first, then confirmed, coincident and rejected ones. `joint` is the loss with all confirmed ones
    zeroed at once, null with fewer than two; `masking` has the weights that, zeroed alone, take super activations of
    other channels away or bring some; `profile` is the first super weight's, null without any. `prompts` is how many
    `recurrences` are over.

    With `early_stop` only the first blocks ran, and ranks and losses are null. `bytes_read` is what was read of the
    checkpoint, again and again included; `checkpoint_bytes` is what its weight files have in all. `tower` is the one
    that ran, of a model with several; `notes` say, a line each, where what ran is not all that the model does.
    """

    model: str
    revision: str | None
    commit: str | None
    model_type: str | None
    prompt: str
    tokens: tuple[str, ...]
    dtype: str
    device: str
    verdict: str
    layers: tuple[LayerMaxima, ...]
    super_activations: tuple[SuperActivation, ...]
    outlier_features: tuple[OutlierFeature, ...]
    writes: tuple[Write, ...]
    super_weights: tuple[SuperWeight, ...]
    joint: JointZeroing | None
    masking: tuple[Masking, ...]
    profile: Profile | None
    prompts: int
    recurrences: tuple[Recurrence, ...]
    early_stop: bool
    bytes_read: int
    checkpoint_bytes: int
    tower: str | None = None
    notes: tuple[str, ...] = ()
