"""An entry's massive channels, and the tokens to put in front of every text, as runtimes take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyzer.base.errors import CatalogError, shown
from analyzer.base.text import short_commit
from analyzer.catalog.documents import Entry


def channels_of(model: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the channels that are massive after each layer, and how large they get there, largest channel first.

    `layers` has, by layer, parallel lists. Raises CatalogError where no entry says, or several do.
    """
    entry = _the_one(model, entries, "massive_channels")
    layers: dict[int, dict[str, list[Any]]] = {}
    for channel in entry["massive_channels"]:
        for layer, magnitude in zip(channel["layers"], channel["magnitudes"], strict=True):
            here = layers.setdefault(layer, {"channels": [], "magnitudes": []})
            here["channels"].append(channel["channel"])
            here["magnitudes"].append(magnitude)
    return {**_of(entry), "layers": {str(layer): layers[layer] for layer in sorted(layers)}}


def prefix_of(model: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the suggested prefix: token ids, in the order in which they go in front, and their texts.

    Raises CatalogError where no entry has one, or several entries say.
    """
    entry = _the_one(model, entries, "prefix")
    return {**_of(entry), **{key: entry["prefix"][key] for key in ("ids", "tokens")}}


def _of(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("model", "commit")}


def _the_one(model: str, entries: Sequence[Entry], field: str) -> Mapping[str, Any]:
    """Return the entry with this field, of several the one that was made with the tool's own settings."""
    known = [entry for entry in entries if entry.get(field) is not None]
    own = [entry for entry in known if entry["method"]["settings"] == "default"] or known
    if not own and any(field in entry for entry in entries):
        raise CatalogError(f"the analysis of {shown(model)} suggests no {field}: there is none to export")
    if not own:
        raise CatalogError(
            f"the catalog has no {field.replace('_', ' ')} of {shown(model)}: run `superweight analyze` on it, whose "
            "entry has what there is"
        )
    if len(own) > 1:
        commits = ", ".join(f"{shown(entry['model'])}@{short_commit(entry['commit'])}" for entry in own[:3])
        raise CatalogError(f"the catalog has {len(own)} analyses of {shown(model)}: name one of {commits}")
    return own[0]
