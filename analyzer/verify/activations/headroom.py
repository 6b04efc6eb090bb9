"""Pure: the largest magnitudes of blocks, against the largest numbers of small formats."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields

from analyzer.verify.activations.over_prompts import Fit, Headroom, LayerMagnitudes

FLOAT16, FLOAT8_E4M3 = 65504.0, 448.0
WHERE = tuple(field.name for field in fields(LayerMagnitudes))[1:]


def headroom_of(
    prompts: int,
    residual: Mapping[int, float],
    mlps: Mapping[int, Mapping[str, float]],
    unseen: Collection[int],
    tower: str | None = None,
) -> Headroom:
    """Return the headroom of the layers that ran, from the magnitudes of the stream after each and of their MLPs.

    Both are by layer, in the order of the run: `mlps` has those of each layer that has an MLP, by WHERE, as far as they
    were seen; `unseen` are layers where that is not all of them.
    """
    found = tuple(
        LayerMagnitudes(layer, stream, *(mlps.get(layer, {}).get(where) for where in WHERE[1:]))
        for layer, stream in residual.items()
    )
    part = {layer for layer, seen in mlps.items() if len(seen) < len(WHERE) - 1}
    lost = tuple(layer for layer in residual if layer in part or layer in unseen)
    return Headroom(prompts, found, lost, _fit(found, FLOAT16), _fit(found, FLOAT8_E4M3), tower)


def _fit(layers: Sequence[LayerMagnitudes], limit: float) -> Fit:
    values = [(value, each.layer, where) for each in layers for where in WHERE if (value := getattr(each, where))]
    value, layer, where = max(values, key=lambda found: found[0], default=(0.0, layers[0].layer, WHERE[0]))
    return Fit(limit, value, layer, where, next((layer for value, layer, _ in values if value > limit), None))
