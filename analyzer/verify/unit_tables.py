"""Whole rows, columns and experts, and critical weights halved and two at a time, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analyzer.base.text import big, cell, fill, percent, plus_minus, signed, table
from analyzer.verify.records import ExpertOutput, Interaction, SuperWeight, UnitEffect, VerifyResult

SHOWN = 12


def unit_sections(result: VerifyResult) -> Iterator[str]:
    """Yield what there is to show of units, of experts, and of critical weights halved and zeroed two at a time."""
    if result.units:
        yield _units_table(result.units)
    if result.experts:
        yield _experts_table(result.experts)
    if halved := [w for w in (*result.super_weights, *result.asked) if w.delta_half is not None]:
        yield _halves_table(halved)
    if result.interactions:
        yield _interactions_table(result.interactions)


def _units_table(units: Sequence[UnitEffect]) -> str:
    rows = [
        [
            each.kind,
            each.unit,
            each.effect + (", destroyed" if each.destroyed else ""),
            plus_minus(each.delta, each.delta_high),
            "-" if each.control_loss_max is None else signed(each.control_loss_max - each.loss),
            "-" if each.kl_divergence is None else f"{each.kl_divergence:.3g}",
            percent(each.top1_agreement),
        ]
        for each in units[:SHOWN]
    ]
    header = ["zeroed", "which", "effect", "Δ loss", "control", "KL", "same top token"]
    return "Rows, columns and experts as a whole\n\n" + table(header, rows) + _more(units)


def _experts_table(experts: Sequence[ExpertOutput]) -> str:
    first = sorted(experts, key=lambda each: each.output_rank)
    rows = [
        [
            each.layer,
            each.expert,
            big(each.output_max),
            each.output_rank,
            f"{each.tokens:,}",
            "yes" if each.super_expert else "no",
        ]
        for each in first[:SHOWN]
    ]
    header = ["layer", "expert", "largest output", "rank", "tokens", "super expert"]
    return "Experts over all tokens of the text\n\n" + table(header, rows) + _more(experts)


def _halves_table(weights: Sequence[SuperWeight]) -> str:
    def change(delta: float | None, high: float | None) -> str:
        return "-" if delta is None or high is None else plus_minus(delta, high)

    rows = [
        [w.coordinate, cell(w.value / 2), change(w.delta_half, w.delta_half_high), change(w.delta, w.delta_high)]
        for w in weights[:SHOWN]
    ]
    return "Critical weights halved\n\n" + table(["weight", "half", "Δ loss", "zeroed"], rows) + _more(weights)


def _interactions_table(interactions: Sequence[Interaction]) -> str:
    largest = sorted(interactions, key=lambda each: -abs(each.beyond))
    rows = [
        [
            *each.coordinates,
            signed(each.delta),
            *map(signed, each.delta_alone),
            plus_minus(each.beyond, each.beyond_high),
        ]
        for each in largest[:SHOWN]
    ]
    header = ["weight", "and weight", "both", "the first", "the second", "beyond their sum"]
    return fill("Critical weights zeroed two at a time, Δ loss") + "\n\n" + table(header, rows) + _more(interactions)


def _more(shown: Sequence[object]) -> str:
    return f"\n\n… and {len(shown) - SHOWN} more (--json lists all)" if len(shown) > SHOWN else ""
