"""A model that knows two words, by one weight each, and what is measured of its weights."""

import torch
from models import HIDDEN, INTERMEDIATE, TEXT_IDS, cue, random_llama

from analyzer.base.records import Coordinate
from analyzer.forward.losses.paired import Told
from analyzer.verify.costs.effects import CRITICAL_INCREASE, measure_effects, measure_joint
from analyzer.verify.costs.measuring import Measuring
from analyzer.verify.preparation import Statics
from analyzer.verify.records import SuperWeight

CAUSE, SECOND, IDLE = (Coordinate(1, None, 7, 3), Coordinate(2, None, 9, 4), Coordinate(3, None, 11, 5))
WINDOWS = [TEXT_IDS * 3, TEXT_IDS * 2 + TEXT_IDS[:20]]  # 192 and 148 tokens: looks at 64, the second, and both


def weight(coordinate, status="confirmed"):
    unknown = dict.fromkeys(
        ("static_rank", "effect", "activation_collapse", "loss", "loss_zeroed", "control_loss_max", "loss_tokens")
    )
    return SuperWeight(*coordinate[:4], value=1.0, share=1.0, status=status, **unknown)


def cued_model():
    """A model that knows what follows two words, by one weight each; and has a large weight that does nothing."""
    model = random_llama(max_position_embeddings=256)
    cue(model, 1, 7, 3, "banana")
    cue(model, 2, 9, 4, "grape")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[11, 5] = 2.0
        model.model.layers[3].mlp.gate_proj.weight[5] = 0  # silu(0) = 0: nothing comes in
    return model


def edited_loss(model, coordinates, windows=WINDOWS):
    """The mean of plain cross-entropies over the windows while weights are zero."""
    views = [model.model.layers[c.layer].mlp.down_proj.weight for c in coordinates]
    with torch.no_grad():
        kept = [view[c.row, c.col].item() for view, c in zip(views, coordinates, strict=True)]
        for view, c in zip(views, coordinates, strict=True):
            view[c.row, c.col] = 0
        total = sum(
            torch.nn.functional.cross_entropy(
                model(torch.tensor([ids])).logits[0, :-1], torch.tensor(ids[1:]), reduction="sum"
            ).item()
            for ids in windows
        )
        for view, c, value in zip(views, coordinates, kept, strict=True):
            view[c.row, c.col] = value
    return total / sum(len(ids) - 1 for ids in windows)


def nearest_by_brute_force(model, coordinate, count):
    down = model.model.layers[coordinate.layer].mlp.down_proj.weight.detach().abs()
    distance = (down - down[coordinate.row, coordinate.col]).abs()
    distance[coordinate.row] = float("inf")
    places = distance.flatten().argsort()[:count].tolist()
    return [coordinate._replace(row=place // INTERMEDIATE, col=place % INTERMEDIATE) for place in places]


def statics_of(model, nearest=None):
    nearest = nearest or (lambda c, count: nearest_by_brute_force(model, c, count))
    return Statics("cued", (), dict, nearest, lambda _: (HIDDEN, INTERMEDIATE))


def measure(cued, found, windows=WINDOWS, nearest=None, loud=()):
    """Return what is measured, the loss without all confirmed ones, and what was zeroed for the first, look by look."""
    model, analyzed = cued
    zeroed = []

    def watched(pairs, progress, **_):
        zeroed.append([tuple(edit.coordinate for edit in intervention.edits) for _, intervention in pairs])
        return [Told(losses) for losses in analyzed.token_losses(pairs)]

    measuring = measured_by(watched, [analyzed.tokens.window(ids) for ids in windows])
    measured = measure_effects(measuring, found, statics_of(model, nearest), loud)
    individually = list(zeroed)
    group = tuple(w.coordinate for w in found if w.status == "confirmed")
    joint = measure_joint(measuring, group)
    return {w.coordinate: w for w in measured}, joint.loss_zeroed, individually


def measured_by(tell, windows):
    return Measuring(tell, windows, lambda *_: None, causal=True, increase=CRITICAL_INCREASE)


def measuring_of(analyzed):
    """Return the measuring of the windows in which all losses are those of the whole vocabulary."""
    windows = [analyzed.tokens.window(ids) for ids in WINDOWS]
    return measured_by(lambda pairs, _, **__: [Told(losses) for losses in analyzed.token_losses(pairs)], windows)
