"""What others have published about super weights, beside what this tool finds: pure functions on the records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from analyzer.catalog.documents import Entry, Reported, is_super, reported_key

NONE_FOUND = "none found"  # the reason where a source looked for super weights and there were none
DISPUTES = {"disputed": "Disputed", "reported": "No longer disputed"}  # by standing, what its reason is about
FIELDS = (
    "model",
    "revision",
    "tower",
    "mlp",
    "layer",
    "expert",
    "row",
    "col",
    "value",
    "standing",
    "reason",
    "sources",
)


def merged(old: Iterable[Reported], new: Iterable[Reported]) -> list[Reported]:
    """Return what both report, one item a coordinate of a model's revision, in order.

    Nothing is lost: sources are added to those that are there (one of the same name and URL is brought up to date), a
    coordinate once disputed stays so unless the new item has a reason why not, and where two values contradict each
    other the first is kept, as disputed.
    """
    items = {reported_key(item): item for item in old}
    for item in new:
        key = reported_key(item)
        items[key] = _merged_item(items[key], item) if key in items else item
    return [{field: items[key][field] for field in FIELDS if field in items[key]} for key in sorted(items)]


def _merged_item(old: Reported, new: Reported) -> Reported:
    sources = {(source["name"], source["url"]): source for source in old["sources"]}
    sources |= {(source["name"], source["url"]): source for source in new["sources"]}
    standing, reason = (new if new["reason"] is not None else old)["standing"], new["reason"] or old["reason"]
    value = new["value"] if old["value"] is None else old["value"]
    if new["value"] is not None and new["value"] != value:
        standing, reason = "disputed", f"The sources give two values: {value!r} and {new['value']!r}."
    return {**old, "value": value, "standing": standing, "reason": reason, "sources": list(sources.values())}


def agreement(entry: Entry, reported: Sequence[Reported]) -> list[dict[str, Any]]:
    """Return, for each coordinate that others report, whether an analysis of the model sees it too.

    `here` is `confirmed`, `critical` (not confirmed, but the model needs it), `coincident` (on the super activation's
    channel, but zeroing it does not take the activation away), `late` or null; `weights` the super weights that stand
    for it: the coordinate itself, or those in a reported row. `agrees` is null where there is nothing to agree with;
    `same_commit` says whether the source looked at this commit.
    """
    return [
        {
            **{field: item[field] for field in ("revision", "layer", "expert", "row", "col", "standing", "reason")},
            "sources": [source["name"] for source in item["sources"]],
            "same_commit": item["revision"] == entry["commit"],
            **_seen(entry, item),
        }
        for item in reported
    ]


def _seen(entry: Entry, item: Reported) -> dict[str, Any]:
    if item["layer"] is None:
        agrees = entry["verdict"] == "none" if item["reason"] == NONE_FOUND else None
        return {"here": None, "agrees": agrees, "weights": []}
    axes = ("layer", "row") if item["col"] is None else ("layer", "expert", "row", "col")
    axes = (*axes, *(axis for axis in ("tower", "mlp") if axis in item))
    same = [weight for weight in entry["super_weights"] if all(weight.get(axis) == item[axis] for axis in axes)]
    found = [weight for weight in same if is_super(weight)]
    here = "critical" if found else same[0]["status"] if same else None
    return {
        "here": "confirmed" if any(weight["status"] == "confirmed" for weight in found) else here,
        "agrees": bool(found),
        "weights": [{axis: weight[axis] for axis in ("layer", "expert", "row", "col")} for weight in found],
    }
