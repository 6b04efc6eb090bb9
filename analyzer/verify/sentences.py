"""What is told over all prompts, a sentence each: of a result, and of a catalog's entry, both as JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analyzer.base.errors import shown
from analyzer.base.text import big, count_of

SHOWN = 3
PLACES = {
    "residual": "the residual stream after layer {}",
    "mlp_input": "what the MLP of layer {} takes",
    "down_input": "what the down projection of layer {} takes",
    "mlp_output": "what the MLP of layer {} gives",
}


def headroom_sentence(headroom: Mapping[str, Any]) -> str:
    """Return whether magnitudes overflow small formats, and what could not be looked into."""
    tower = f" in the tower {shown(headroom['tower'], 40)}" if headroom.get("tower") else ""
    half, eighth = headroom["float16"], headroom["float8_e4m3"]
    over = f"over {count_of(headroom['prompts'], 'prompt')}"
    largest = f"{_magnitude(half['largest'])} in {PLACES[half['where']].format(half['layer'])}, {over}"
    if half["overflows_from"] is not None:
        sentence = (
            f"Float16 overflows from layer {half['overflows_from']} on{tower}: the largest magnitude is {largest}, "
        )
        sentence += f"{half['largest'] / half['limit']:,.3g} times its limit"
    else:
        sentence = f"Float16: the largest magnitude{tower} is {largest}, "
        sentence += f"{half['limit'] / max(half['largest'], 1e-9):,.3g} times below its limit"
    from_layer = eighth["overflows_from"]
    sentence += "; FP8 (e4m3) without a scale " + (
        "holds it too." if from_layer is None else f"overflows from layer {from_layer} on."
    )
    if unseen := headroom["unseen"]:
        more = f" and {len(unseen) - 8} more" if len(unseen) > 8 else ""
        sentence += f" Of the MLPs of layers {', '.join(map(str, unseen[:8]))}{more} not all could be seen."
    return sentence


def sinks_sentence(sinks: Mapping[str, Any], prefix: Mapping[str, Any] | None) -> str:
    """Return where super activations sit, and the tokens that may be put in front; empty where there is none."""
    if not sinks["positions"]:
        return ""
    places = [f"{p['position']} in {p['prompts']} of {p['of']}" for p in sinks["positions"][:SHOWN]]
    later = [each for each in sinks["tokens"] if each["prompts"] > each["at_start"]][:SHOWN]
    tokens = [f"{_quoted(t['token'])} in {t['prompts']} of {t['of']}" for t in later]
    sentence = f"Over {count_of(sinks['prompts'], 'prompt')}, super activations sit at position {', '.join(places)}"
    sentence += f"; after the start at the tokens {', '.join(tokens)} prompts that have them." if tokens else "."
    if prefix is not None:
        ids = ", ".join(map(str, prefix["ids"][:8]))
        sentence += f" A prefix to hold them: {' '.join(map(_quoted, prefix['tokens'][:8]))} (ids {ids})."
    return sentence


def _magnitude(value: float) -> str:
    return big(value).removeprefix("+")


def _quoted(token: str) -> str:
    return shown(repr(token), 20)
