"""Table 1 on a planted model: every arm against stock transformers with edited weights."""

import json
import math

import numpy as np
import pytest
import torch
import transformers
from mlx_models import rounded, write_mlx
from models import PLANTED, hooked, plant, random_llama
from plainly import down, losses, times, windows, zeroed_but
from scipy import stats

from analyzer.base.records import Coordinate
from analyzer.experiments import prune
from analyzer.experiments.controls.others import Others
from analyzer.experiments.lab.records import Cost, Measured
from analyzer.experiments.reports.report import render_experiment
from analyzer.verify.activations.detection import detect
from analyzer.verify.settings import Thresholds

SECOND, THIRD = Coordinate(3, None, 5, 19), Coordinate(0, None, 7, 2)


def by_name(result):
    return {arm["name"]: arm for arm in result.as_json()["arms"]}


def is_cost(arm, before, after):
    """Assert an arm's losses are these, [windows] each, with the t interval of their differences."""
    assert arm["nll"] == pytest.approx(after.mean(), abs=1e-4)
    assert arm["perplexity"] == pytest.approx(np.exp(after.mean()), rel=1e-3)
    assert arm["delta"] == pytest.approx((after - before).mean(), abs=1e-4)
    half = stats.t.ppf(0.975, len(before) - 1) * (after - before).std(ddof=1) / len(before) ** 0.5
    assert arm["delta_low"] == pytest.approx((after - before).mean() - half, abs=2e-4)
    assert arm["delta_high"] == pytest.approx((after - before).mean() + half, abs=2e-4)


def test_each_all_and_all_but_one_are_those_of_edited_weights(planted, run):
    folder, plain = planted
    batch = windows(folder, 12)
    before = losses(plain, batch)
    weights = (PLANTED, SECOND, THIRD)
    arms = by_name(run(prune.EXPERIMENT, weights=weights, others=(), restore=()))
    is_cost(arms["original"], before, before)
    sets = {"all zeroed": weights} | {f"{c} zeroed": (c,) for c in weights}
    sets |= {f"all but {c} zeroed": tuple(other for other in weights if other != c) for c in weights}
    for name, those in sets.items():
        with times(plain, dict.fromkeys(those, 0.0)):
            after = losses(plain, batch)
        is_cost(arms[name], before, after)
        assert arms[name]["zeroed"] == len(those)
    assert abs(arms[f"{PLANTED} zeroed"]["delta"]) > 0.05


def largest(count):
    def positions(clean):
        keep = torch.zeros(len(clean), dtype=torch.bool)
        keep[clean.abs().argsort(descending=True, stable=True)[:count]] = True
        return keep

    return positions


def test_restoring_is_putting_the_clean_output_back(planted, run):
    folder, plain = planted
    batch = windows(folder, 12)
    before = losses(plain, batch)
    arms = by_name(run(prune.EXPERIMENT, others=(), restore=(3,)))
    with times(plain, {PLANTED: 0.0}):
        pruned = losses(plain, batch)
    choices = {
        "restored at peak": largest(1),
        "restored at 3 largest": largest(3),
        "zeroed at peak alone": lambda clean: ~largest(1)(clean),
    }
    for name, choose in choices.items():
        with zeroed_but(plain, PLANTED, choose):
            after = losses(plain, batch)
        is_cost(arms[name], before, after)
        if name.startswith("restored"):
            share = (pruned.mean() - after.mean()) / (pruned.mean() - before.mean())
            assert arms[name]["recovered"] == pytest.approx(share, abs=1e-3)
        else:
            assert arms[name]["recovered"] is None
    assert 0 < arms["restored at peak"]["recovered"] < 1


def test_restoring_at_every_position_is_the_untouched_model(run):
    arms = by_name(run(prune.EXPERIMENT, others=(), restore=(11,)))
    assert arms["restored at 11 largest"]["recovered"] == pytest.approx(1, abs=0.2)


def test_the_positions_of_the_super_activation_are_those_that_verify_sees(planted, run):
    folder, _ = planted
    model, batch = hooked(folder), windows(folder, 12).tolist()
    counts = []
    for ids in batch:
        found, _ = detect(model.streams([ids], [()])[0], model.layers, [""] * len(ids), Thresholds())
        at = {a.position for a in found if a.channel == PLANTED.row and a.layer <= PLANTED.layer}
        counts.append(len(at))
    assert sum(counts) > 0
    arm = by_name(run(prune.EXPERIMENT, others=(), restore=()))["restored at super activation"]
    assert arm["positions"] == pytest.approx(np.mean(counts))


def others_of(plain, kind, count):
    """Return which weights of the stock model are zeroed, as (parameter, flat places)."""
    matrices = {name: p for name, p in plain.model.layers.named_parameters() if p.ndim == 2}
    own = f"{PLANTED.layer}.mlp.down_proj.weight"
    place = PLANTED.row * matrices[own].shape[1] + PLANTED.col
    if kind == "same-tensor":
        matrices = {own: matrices[own]}
    if kind == "per-tensor":
        chosen = {}
        for name, p in matrices.items():
            last = p.abs().flatten().topk(int(p.numel() * count)).values[-1]
            chosen[name] = [
                n for n in (p.abs().flatten() >= last).nonzero()[:, 0].tolist() if (name, n) != (own, place)
            ]
        return chosen
    sized = [(-abs(v), name, n) for name, p in matrices.items() for n, v in enumerate(p.flatten().tolist())]
    best = sorted(each for each in sized if each[1:] != (own, place))[: int(count)]
    return {name: [n for _, other, n in best if other == name] for name in matrices}


@pytest.mark.parametrize("others", ["global:300", "same-tensor:4000", "per-tensor:1e-3"])
def test_others_are_zeroed_as_many_as_is_said(planted, run, others):
    folder, plain = planted
    batch, before = windows(folder, 12), losses(plain, windows(folder, 12))
    arm = by_name(run(prune.EXPERIMENT, others=(Others.parse(others),), restore=()))[f"others: {Others.parse(others)}"]
    chosen = others_of(plain, others.partition(":")[0], float(others.partition(":")[2]))
    kept = {name: p.detach().clone() for name, p in plain.model.layers.named_parameters() if name in chosen}
    with torch.no_grad():
        for name, places in chosen.items():
            plain.model.layers.get_parameter(name).view(-1)[places] = 0
        after = losses(plain, batch)
        for name, values in kept.items():
            plain.model.layers.get_parameter(name).copy_(values)
    is_cost(arm, before, after)
    assert arm["zeroed"] == sum(map(len, chosen.values()))
    assert abs(arm["delta"]) > 1e-4
    assert down(plain, PLANTED).weight[PLANTED.row, PLANTED.col] == 2


def test_random_others_are_the_same_for_a_seed(run):
    options = {"others": (Others.parse("random:50"),), "restore": ()}
    first, again, other = (
        by_name(run(prune.EXPERIMENT, settings={"seed": seed}, **options))["others: random:50"] for seed in (0, 0, 1)
    )
    assert first == again
    assert first["zeroed"] == other["zeroed"] == 50
    assert first["nll"] != other["nll"]


def test_the_result_says_what_was_run_and_on_which_weights(planted, run):
    result = run(prune.EXPERIMENT, others=(), restore=())
    document = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert document["experiment"] == "prune"
    assert document["weights"] == [{"layer": 1, "expert": None, "row": 77, "col": 31, "value": 2.0}]
    protocol = document["protocol"]
    assert {key: protocol[key] for key in ("data", "windows", "length", "tokens", "bos", "dtype", "device")} == {
        "data": "text.txt",
        "windows": 8,
        "length": 12,
        "tokens": 88,
        "bos": False,
        "dtype": "float32",
        "device": "cpu",
    }
    text = render_experiment(result)
    assert "prune: 1,77,31 = +2 (named by the user)." in text
    assert max(map(len, text.splitlines())) <= 100


def test_of_a_quantized_file_no_others_are_zeroed_and_that_is_said(planted, run, tmp_path):
    batch = windows(planted[0], 12)
    packed, floats = write_mlx(plant(random_llama()), tmp_path, encode=rounded)
    stock = transformers.LlamaForCausalLM.from_pretrained(floats).eval()
    result = run(prune.EXPERIMENT, folder=packed, restore=())
    arms = by_name(result)
    assert not [name for name in arms if name.startswith("others")]
    assert "No others were zeroed" in result.outcome.findings[-1]
    with times(stock, {PLANTED: 0.0}):
        assert arms[f"{PLANTED} zeroed"]["nll"] == pytest.approx(losses(stock, batch).mean(), abs=1e-4)


def cost(delta, half):
    return Cost(3 + delta, delta, delta - half, delta + half)


def difference(one, other):
    """Return what one costs above another, window by window, where they have nothing in common."""
    return cost(one.delta - other.delta, one.delta_high - one.delta + other.delta_high - other.delta)


@pytest.mark.parametrize(
    ("zeroed", "others", "peak", "holds"),
    [
        (cost(5, 0.2), cost(0.1, 0.1), cost(3, 0.5), [True, True, True]),
        (cost(2, 0.1), cost(5, 0.5), cost(0.01, 0.02), [False, False, False]),
        (cost(2.2, 0.3), cost(2, 0.1), cost(0.3, 0.4), [None, None, None]),
        (cost(0.1, 0.2), cost(0.1, 0.2), None, [False, None, None]),
        (cost(-0.5, 0.1), cost(0.1, 0.1), cost(-0.1, 0.1), [False, False, None]),
        (cost(math.inf, 0), cost(1, 0.2), None, [True, True, None]),
    ],
)
def test_what_the_paper_claims_is_judged_by_intervals(zeroed, others, peak, holds):
    arms = [
        Measured("original", 0, cost(0, 0)),
        effect := Measured("x zeroed", 1, zeroed),
        Measured("others: global:7000", 7000, others, facts={"others": "global:7000"}),
        Measured("restored at peak", 1, peak or zeroed, None if peak is None else 1 - peak.delta / zeroed.delta),
    ]
    above = {arm.name: difference(zeroed, arm.cost) for arm in arms}
    claims = list(prune._claims(arms, effect, ["others: global:7000"], 1, above))
    assert [claim.holds for claim in claims] == holds
    assert "7,000 largest others" in claims[1].why


def test_a_difference_counts_window_by_window_where_intervals_overlap():
    arms = [
        Measured("original", 0, cost(0, 0)),
        effect := Measured("x zeroed", 1, cost(3.5, 1.4)),
        Measured("others: global:7000", 7000, cost(4.7, 0.5), facts={"others": "global:7000"}),
        Measured("restored at peak", 1, cost(0.6, 0.6), 0.8),
    ]
    above = {"others: global:7000": cost(-1.2, 0.3), "restored at peak": cost(2.9, 0.4)}
    claims = list(prune._claims(arms, effect, ["others: global:7000"], 1, above))
    assert [claim.holds for claim in claims] == [None, False, None]
    assert "a difference of -1.2000 ±0.3000" in claims[1].why


def test_claims_that_nothing_was_measured_for_cannot_be_told(run):
    claims = run(prune.EXPERIMENT, others=(), restore=()).outcome.claims
    assert [claim.verdict for claim in claims][1] == "cannot be told"
    assert "were not zeroed" in claims[1].why
