"""What a verification returns; the field names are the JSON contract."""

from __future__ import annotations

from dataclasses import dataclass, field

from analyzer.base.records import Coordinate, Unit
from analyzer.model.cost import Cost
from analyzer.verify.activations.over_prompts import Headroom, MassiveChannel, Prefix, Routing, Sinks

REASONS = {
    "survives": "zeroing it leaves the super activation as it is",
    "grows": "zeroing it makes the super activation larger: it takes some of it away",
    "late": "what it writes is not followed by as many blocks as a super activation persists through",
    "share": "it is on a super activation's channel, and its share of each write is too small",
    "channel": "there is no super activation on its channel",
    "latent": "it writes a latent, which is turned before the residual stream, so that its share of no write is known",
}
"""Why a weight is not confirmed."""


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
    same layer; `positions` is at how many positions the channel is as large there, null where that was not counted.
    """

    layer: int
    channel: int
    position: int
    token: str
    value: float
    median_ratio: float
    last_layer: int
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class OutlierFeature:
    """A channel that is as large as a super activation at more than half of the positions of its first layer."""

    channel: int
    layer: int
    last_layer: int
    positions: int


@dataclass(frozen=True)
class Write:
    """A block that changes a super activation's channel, at its position, by a multiple of the median.

    `change` is signed; `largest_share` the largest part that one weight has in what the MLPs add there.
    """

    layer: int
    channel: int
    position: int
    change: float
    largest_share: float


@dataclass(frozen=True)
class SuperWeight:
    """A coordinate judged by running the model; losses are nats per token, a mean over `loss_tokens` tokens.

    `status` is "confirmed", "coincident", "late" or "rejected", and `reason` one of REASONS, why it is not confirmed;
    `effect` is "critical" or "inert", null where no loss was measured; `static_rank` is its rank by magnitude among
    the weights of all down projections of its tower. `change` is the largest change of a super activation that it is
    behind, null where it is behind none, `share` its part of what the block's MLPs add at that position and row (0
    where that is not known: `reason` "latent"); `activation_collapse` the part of the super activation's magnitude that
    zeroing takes away. `round` is 1 where it shows in the untouched model, else more: it was masked until those of the
    earlier rounds were zeroed. Of the losses with a control weight zeroed `control_loss_max` is the worst, the other
    two the worst of those of nearest magnitude and of the random ones. `delta` is what zeroing adds to the loss, with
    its interval; where `zeroed_with` is not null, the weight has no loss of its own: it was zeroed with so many others,
    whose delta this is. Of a weight that was run over the whole text, `kl_divergence` is that of the untouched model
    from the one with it zeroed, in nats per token, `top1_agreement` the part of the tokens where both find the same
    one likeliest, and `destroyed` says whether the zeroed one knows less of the text than its unigrams tell, null where
    the untouched one does not know more.
    `delta_half` is what half of the weight's value adds to the loss, where that was asked for.
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
    reason: str | None = None
    change: float | None = None
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    zeroed_with: int | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    destroyed: bool | None = None
    delta_half: float | None = None
    delta_half_low: float | None = None
    delta_half_high: float | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where the weight is."""
        return Coordinate(self.layer, self.expert, self.row, self.col, self.tower, self.mlp)

    @property
    def column(self) -> Coordinate:
        """Where its column is: what one input channel of its down projection writes is one event."""
        return self.coordinate._replace(row=0)

    @property
    def is_super(self) -> bool:
        """Whether it is a super weight: confirmed or critical."""
        return self.status == "confirmed" or self.effect == "critical"


@dataclass(frozen=True)
class Column:
    """The weights of one input channel that write several channels at once: one event.

    `rows` are those of its weights that are confirmed, late or critical, the one with the largest change first;
    `delta` is what zeroing all of these at once adds to the loss, with its interval, over `loss_tokens` tokens of the
    text; null where it was not measured.
    """

    layer: int
    expert: int | None
    col: int
    rows: tuple[int, ...]
    delta: float | None
    delta_low: float | None
    delta_high: float | None
    loss_tokens: int | None
    tower: str | None = None
    mlp: int | None = None

    @property
    def coordinate(self) -> Coordinate:
        """Where it is, as SuperWeight.column says it."""
        return Coordinate(self.layer, self.expert, 0, self.col, self.tower, self.mlp)


@dataclass(frozen=True)
class UnitEffect:
    """What zeroing a whole row, column or expert does over the whole text; fields are named as SuperWeight's are.

    `kind` says which it is; `row` and `col` are null where it has all of them. `controls` is how many it is held
    against: rows, or columns, of the same matrix and of nearest norm, or experts of the same layer that get about as
    many tokens.
    """

    kind: str
    layer: int
    expert: int | None
    row: int | None
    col: int | None
    effect: str
    loss: float
    loss_zeroed: float
    loss_tokens: int
    delta: float
    delta_low: float
    delta_high: float
    controls: int
    control_loss_max: float | None
    kl_divergence: float | None
    top1_agreement: float | None
    destroyed: bool | None
    tower: str | None = None
    mlp: int | None = None

    @property
    def unit(self) -> Unit:
        """What it is."""
        return Unit(Coordinate(self.layer, self.expert, 0, 0, self.tower, self.mlp).place, self.row, self.col)


@dataclass(frozen=True)
class ExpertOutput:
    """What an expert's down projection gives over all tokens of the text, before the router's weight.

    `output_max` is the largest magnitude, `output_rank` its place among those of all experts, 1 the largest, `tokens`
    how many it is given. `super_expert` says whether it is one by the criterion of arXiv 2507.23279.
    """

    layer: int
    expert: int
    output_max: float
    output_rank: int
    tokens: int
    super_expert: bool
    tower: str | None = None
    mlp: int | None = None


@dataclass(frozen=True)
class Interaction:
    """What two weights cost together, `delta`, and each alone, and what the first is beyond the sum of these.

    In nats per token over `loss_tokens` tokens; the interval is that of `beyond`.
    """

    coordinates: tuple[Coordinate, Coordinate]
    delta: float
    delta_alone: tuple[float, float]
    beyond: float
    beyond_low: float
    beyond_high: float
    loss_tokens: int


@dataclass(frozen=True)
class JointZeroing:
    """The loss with these weights zeroed at once, and without that, over `loss_tokens` tokens.

    `delta_low` and `delta_high` are the ends of an interval of their difference.
    """

    coordinates: tuple[Coordinate, ...]
    loss_zeroed: float
    loss: float
    delta_low: float
    delta_high: float
    loss_tokens: int


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
    in and on. `verdict` is "found" where a weight is confirmed or critical, else "none".

    `layers` has the largest values of each block that ran, `super_activations` the largest first, `late_activations`
    what is as large at the end and begins too late to persist, `outlier_features` the channels that are as large at
    most positions, `writes` the blocks that made the activations. `super_weights` are confirmed and critical ones
    first, then the others, by the size of what they write, those of one column together; `columns` has those that
    write several channels. `joint` is the loss with all confirmed ones zeroed at once, null with fewer than two;
    `masking` has the weights that, zeroed alone, take super activations of other channels away or bring some;
    `profile` is the first super weight's, null without any. `prompts` is how many `recurrences` are over.

    Where weights were asked for, `asked` has them and nothing was searched for: `verdict` is null, `super_weights` is
    empty, and `joint` is over the asked ones.

    `units` are the rows, columns and experts that were asked for and, with `more`, those of the critical weights;
    `experts`, where one was asked for, the outputs of all that are super experts, and of those; `interactions`, with
    `more`, what critical weights cost two at a time.

    With `early_stop` only the first blocks ran, and ranks and losses are null. `bytes_read` is what was read of the
    checkpoint, again and again included; `checkpoint_bytes` is what its weight files have in all. `tower` is the one
    that was judged, of a model with several; an encoder by itself has no losses. `notes` say, a line each, where what
    ran is not all that the model does; `streams` is how many the residual stream is made of, null where it is one.

    Over the prompt and the `prompts`, as the tokenizer gives them: `headroom` has the largest magnitudes,
    `massive_channels` the channels that are as large as a super activation's anywhere, `sinks` the positions and tokens
    that carry super activations, `prefix` tokens that could be put in front, null where none is suggested, and
    `routing` how often the experts are chosen that a weight told is in.

    `cost` is what running it took here, which is another thing on another machine: results that differ in it alone are
    equal.
    """

    model: str
    revision: str | None
    commit: str | None
    model_type: str | None
    prompt: str
    tokens: tuple[str, ...]
    dtype: str
    device: str
    verdict: str | None
    layers: tuple[LayerMaxima, ...]
    super_activations: tuple[SuperActivation, ...]
    late_activations: tuple[SuperActivation, ...]
    outlier_features: tuple[OutlierFeature, ...]
    writes: tuple[Write, ...]
    super_weights: tuple[SuperWeight, ...]
    asked: tuple[SuperWeight, ...]
    columns: tuple[Column, ...]
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
    streams: int | None = None
    units: tuple[UnitEffect, ...] = ()
    experts: tuple[ExpertOutput, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    headroom: Headroom | None = None
    massive_channels: tuple[MassiveChannel, ...] = ()
    sinks: Sinks | None = None
    prefix: Prefix | None = None
    routing: tuple[Routing, ...] = ()
    cost: Cost | None = field(default=None, compare=False)
