"""Figure 5: where the probability of the next token goes when the weights are zeroed, over contexts of LAMBADA."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzer.base.errors import ForwardError, shown
from analyzer.base.records import Coordinate, plain
from analyzer.experiments.controls.nearest import nearest_controls
from analyzer.experiments.data.stop_words import VERSION, stop_ids
from analyzer.experiments.lab.records import Claim, Experiment, Measured, Option, Outcome, whole_number
from analyzer.forward.edits import UNTOUCHED, zeroing

if TYPE_CHECKING:
    import torch

    from analyzer.experiments.lab.opening import Lab

TOP = 100
SHOWN = 20
LENS = 10  # tokens that a direction promotes, and suppresses, most
RESAMPLES = 1000
SEVERAL = 2.0  # times as much: the least that the paper says of stop words
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """What a model says after the contexts: its mean distribution, and of each context some numbers, [contexts]."""

    mean: Numbers  # [vocabulary]
    entropy: Numbers
    kl: Numbers
    agrees: Numbers
    stop_mass: Numbers


def run(lab: Lab, *, top: int) -> Outcome:
    """Compare the mean next-token distribution of the untouched model with that of the model without the weights.

    Raises ForwardError where the model says no next token, or what it says is no number.
    """
    if lab.runner.masked or lab.runner.start is not None:
        raise ForwardError(f"{lab.runner.name} does not go on with a text: tokens needs a causal language model")
    from analyzer.experiments.lab.predicting import last_states

    coordinates = [weight.coordinate for weight in lab.weights]
    controls = nearest_controls(lab.runnable, coordinates)
    sets = {
        "original": UNTOUCHED,
        "all zeroed" if coordinates[1:] else f"{coordinates[0]} zeroed": zeroing(coordinates),
    }
    sets |= {f"{c} zeroed": zeroing([c]) for c in coordinates}
    if controls:
        sets["controls zeroed"] = zeroing(controls)
    states = last_states(lab, list(sets.values()))
    texts = lab.tokens.texts(range(lab.runner.vocabulary))
    stops = np.array(stop_ids(texts), dtype=np.int64)
    said = [_said(lab, states[0], each, stops) for each in states]
    if not np.isfinite(said[0].mean).all():
        raise lab.not_finite()
    arms = [
        _arm(name, len(edits.edits), each, lab.settings.seed)
        for (name, edits), each in zip(sets.items(), said, strict=True)
    ]
    before, after = said[0].mean, said[1].mean
    chosen = _top_of(before, after, top)
    tokens = _tokens(lab, states[:2], chosen, texts)
    rises = sum(each["ratio"] is not None and each["ratio"] > 1 for each in tokens if each["id"] in set(stops.tolist()))
    more = {
        "tokens": tokens,
        "controls": controls,
        "stop_words": {"version": VERSION, "tokens": len(stops)},
        "lens": _lenses(lab, texts, stops),
    }
    return Outcome(
        tuple(arms), tuple(_findings(arms, rises)), more, tuple(_tables(more)), (_claim(said, lab.settings.seed),)
    )


def _said(lab: Lab, untouched: torch.Tensor, states: torch.Tensor, stops: NDArray[np.int64]) -> Said:
    from analyzer.experiments.lab.predicting import probabilities

    total = np.zeros(lab.runner.vocabulary)
    entropy, kl, agrees, mass = (np.zeros(len(states)) for _ in range(4))
    pairs = zip(probabilities(lab.runner, untouched), probabilities(lab.runner, states), strict=True)
    for (part, before), (_, after) in pairs:
        total += after.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy[part] = -np.where(after > 0, after * np.log(after), 0.0).sum(axis=1)
            kl[part] = np.where(before > 0, before * (np.log(before) - np.log(after)), 0.0).sum(axis=1)
        agrees[part] = before.argmax(axis=1) == after.argmax(axis=1)
        mass[part] = after[:, stops].sum(axis=1)
    return Said(total / len(states), entropy, kl, agrees, mass)


def _arm(name: str, zeroed: int, said: Said, seed: int) -> Measured:
    facts: dict[str, Any] = {}
    for what, values in (("stop_mass", said.stop_mass), ("entropy", said.entropy), ("kl", said.kl)):
        low, high = bootstrapped(values[None], seed)
        facts |= {what: float(values.mean()), f"{what}_low": float(low[0]), f"{what}_high": float(high[0])}
    facts |= {"rest_mass": 1 - facts["stop_mass"], "top1_agreement": float(said.agrees.mean())}
    return Measured(name, zeroed, None, facts=facts)


def _top_of(before: Numbers, after: Numbers, top: int) -> list[int]:
    """Return the most likely tokens before, and those of after that are not among them, each in order."""
    first, last = (np.argsort(-each, kind="stable")[:top].tolist() for each in (before, after))
    return list(dict.fromkeys([*first, *last]))


def _tokens(lab: Lab, states: torch.Tensor, chosen: Sequence[int], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the mean probability of each token before and after, with an interval of their ratio over contexts."""
    from analyzer.experiments.lab.predicting import probabilities

    before, after = (
        np.concatenate([found[:, chosen] for _, found in probabilities(lab.runner, each)]).T for each in states
    )  # [chosen, contexts]
    lows, highs = bootstrapped(after, lab.settings.seed, over=before)
    return [
        {
            "token": texts[number],
            "id": number,
            "before": float(old.mean()),
            "after": float(new.mean()),
            "ratio": float(new.mean() / old.mean()) if old.any() else None,
            "low": float(low),
            "high": float(high),
        }
        for number, old, new, low, high in zip(chosen, before, after, lows, highs, strict=True)
    ]


def bootstrapped(values: Numbers, seed: int, *, over: Numbers | None = None) -> tuple[Numbers, Numbers]:
    """Return the 95 % intervals of means over contexts, or of the ratios of these means, by the bootstrap.

    `values` and `over` are [n, contexts]; contexts are drawn in pairs. Both ends are NaN where there is one context.
    """
    from scipy import stats

    if values.shape[1] < 2:
        nothing = np.full(len(values), np.nan)
        return nothing, nothing
    rows = (values,) if over is None else (values, over)

    def statistic(*drawn: Numbers, axis: int) -> Numbers:
        means = [each.mean(axis=axis) for each in drawn]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Numbers = means[0] if len(means) == 1 else means[0] / means[1]
        return found

    with warnings.catch_warnings(action="ignore"):  # of values that are all alike, or infinite
        found = stats.bootstrap(
            rows, statistic, axis=1, paired=True, n_resamples=RESAMPLES, batch=50, method="percentile", rng=seed
        )
    return found.confidence_interval.low, found.confidence_interval.high


def _lenses(lab: Lab, texts: Sequence[str], stops: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return what each weight's column promotes and suppresses, with the sign of its input where it writes most."""
    from analyzer.experiments.lab.observing import observe
    from analyzer.experiments.lab.predicting import lens
    from analyzer.projections.weights import read_weights

    coordinates = [weight.coordinate for weight in lab.weights]
    seen = observe(lab.runner, max(lab.contexts, key=len), coordinates)
    columns = []
    for c in coordinates:
        (projection,) = (each for each in lab.runnable.projections if each.place == c.place)
        column = read_weights(
            lab.runnable.checkpoint, [projection], [c._replace(row=row) for row in range(projection.shape[0])]
        )
        (peak,) = seen[c].largest(1)
        columns.append(np.array(list(column.values())) * np.sign(seen[c].entered[peak]))
    logits = lens(lab.runner, np.stack(columns))
    rest = np.ones(logits.shape[1], np.bool_)
    rest[stops] = False

    def named(order: NDArray[np.int64], values: Numbers) -> list[dict[str, Any]]:
        return [{"token": texts[n], "id": int(n), "logit": float(values[n])} for n in order[:LENS]]

    return [
        {
            "weight": plain(c),
            "stop_mean": float(each[stops].mean()) if len(stops) else float("nan"),
            "rest_mean": float(each[rest].mean()),
            "promoted": named(np.argsort(-each, kind="stable"), each),
            "suppressed": named(np.argsort(each, kind="stable"), each),
        }
        for c, each in zip(coordinates, logits, strict=True)
    ]


def _findings(arms: Sequence[Measured], rises: int) -> Iterator[str]:
    original, zeroed = arms[0].facts, arms[1].facts
    mass = f"from {_with_interval(original, 'stop_mass')} to {_with_interval(zeroed, 'stop_mass')}"
    factor = f", by a factor of {zeroed['stop_mass'] / original['stop_mass']:.2f}" if original["stop_mass"] else ""
    yield f"The mass of stop words goes {mass}{factor}; {rises} of those listed rise."
    yield (
        f"The most likely token stays the same after {zeroed['top1_agreement']:.0%} of the contexts; the entropy goes "
        f"from {original['entropy']:.2f} to {zeroed['entropy']:.2f} nats, and the divergence from the untouched model "
        f"is {_with_interval(zeroed, 'kl')} nats."
    )


def _claim(said: Sequence[Said], seed: int) -> Claim:
    text = "without the super weight stop words become several times as likely"
    before, after = said[0].stop_mass, said[1].stop_mass
    if not before.any():
        return Claim(text, None, "the model gives them no probability to begin with")
    low, high = (float(each[0]) for each in bootstrapped(after[None], seed, over=before[None]))
    between = "" if math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    why = f"their mass goes from {before.mean():.3f} to {after.mean():.3f}, by a factor of "
    holds = True if low > SEVERAL else False if high < SEVERAL else None
    return Claim(text, holds, f"{why}{after.mean() / before.mean():.2f}{between}; {SEVERAL:g} and more is several")


def _with_interval(facts: Any, what: str) -> str:
    low, high = facts[f"{what}_low"], facts[f"{what}_high"]
    return f"{facts[what]:.3f}" + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")


def _tables(more: Any) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    tokens = more["tokens"]
    header = ("token", "before", "after", "ratio", "95 % interval")
    for title, key in (("Most likely before", "before"), ("Most likely after", "after")):
        most = sorted(tokens, key=lambda each: -each[key])[:SHOWN]
        yield title, header, [_token_row(each) for each in most]
    for each in more["lens"]:
        where = Coordinate(**{key: each["weight"].get(key) for key in Coordinate._fields})
        rows = [
            [
                shown(repr(up["token"]), 24),
                f"{up['logit']:+.2f}",
                shown(repr(down["token"]), 24),
                f"{down['logit']:+.2f}",
            ]
            for up, down in zip(each["promoted"], each["suppressed"], strict=True)
        ]
        title = (
            f"What the column of {where} says through the final norm and the head: stop words "
            f"{each['stop_mean']:+.2f} on average, others {each['rest_mean']:+.2f}"
        )
        yield title, ("promotes", "logit", "suppresses", "logit"), rows


def _token_row(token: Any) -> list[str]:
    ratio = "-" if token["ratio"] is None else f"{token['ratio']:.3g}"
    interval = "-" if math.isnan(token["low"]) else f"{token['low']:.3g} to {token['high']:.3g}"
    return [shown(repr(token["token"]), 24), f"{token['before']:.4f}", f"{token['after']:.4f}", ratio, interval]


EXPERIMENT = Experiment(
    name="tokens",
    says="""Compare what the model says next before and after zeroing the weights (Figure 5).

    The mean distribution after the first passages of LAMBADA without their last word: the most likely tokens of both,
    the mass of stop words, entropy, divergence, and what the weights' columns say through the head.

    \b
    Examples:
      superweight experiment tokens ./my-model --limit 100
      superweight experiment tokens huggyllama/llama-7b --weight 2,3968,7003 --json | jq '.tokens[:5]'
    """,
    run=run,
    needs="prompts",
    picture="tokens",
    options=(Option("top", "How many of the most likely tokens of both are listed.", whole_number, TOP, "N"),),
)
