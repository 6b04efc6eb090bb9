"""Pure: two answers for the same weights, as `verify --weight --json` prints them -> the two side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyzer.base.errors import ResultError, shown
from analyzer.base.records import Coordinate
from analyzer.base.text import name_at
from analyzer.diff.tuned.records import Judged, JudgedWeight, TunedDiff

Answer = Mapping[str, Any]


def compare_answers(
    old: Answer, new: Answer, known: Mapping[Coordinate, str], *, notes: Sequence[str] = ()
) -> TunedDiff:
    """Return what two models say of the same weights, which both were asked for in the order of `known`.

    Raises ResultError where they were not.
    """
    if not len(old["asked"]) == len(new["asked"]) == len(known):
        raise ResultError(f"{shown(old['model'], 80)} and {shown(new['model'], 80)} were asked for different weights")
    weights = [
        JudgedWeight(**coordinate._asdict(), known=standing, old=_judged(before, old), new=_judged(after, new))
        for (coordinate, standing), before, after in zip(known.items(), old["asked"], new["asked"], strict=True)
    ]
    losses = [next((weight["loss"] for weight in side["asked"]), None) for side in (old, new)]
    more = [f"{shown(side['model'], 80)}: {note}" for side in (old, new) for note in side["notes"]]
    return TunedDiff(
        old=name_at(old["model"], old["revision"]),
        new=name_at(new["model"], new["revision"]),
        old_commit=old["commit"],
        new_commit=new["commit"],
        prompt=new["prompt"],
        old_loss=losses[0],
        new_loss=losses[1],
        weights=tuple(weights),
        notes=(*notes, *dict.fromkeys(more)),
    )


def _judged(weight: Mapping[str, Any], answer: Answer) -> Judged:
    activation = _activation(weight, answer)
    fields = ("value", "share", "status", "reason", "effect", "delta", "delta_low", "delta_high")
    return Judged(
        activation=activation["value"] if activation else None,
        activation_layer=activation["layer"] if activation else None,
        **{name: weight[name] for name in fields},
    )


def _activation(weight: Mapping[str, Any], answer: Answer) -> Mapping[str, Any] | None:
    """Return the largest super activation on a weight's channel that lasts at its layer, or ends just before it.

    Of several residual streams none is told: which channel of which stream a row writes to is not one.
    """
    if answer.get("streams") is not None:
        return None
    there = [
        each
        for each in answer["super_activations"]
        if each["channel"] == weight["row"] and each["layer"] <= weight["layer"] <= each["last_layer"] + 1
    ]
    return max(there, key=lambda each: (each["last_layer"] >= weight["layer"], abs(each["value"])), default=None)
