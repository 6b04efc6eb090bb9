"""Whether scores tell effects: correlations and their intervals against scipy, drawn and ranked the slow way."""

import numpy as np
import pytest
from scipy import stats
from surveys import outlier, random_result, verified, weight

from analyzer.survey.results import prediction
from analyzer.survey.results.findings import weights_of
from analyzer.survey.results.prediction import SEED, Prediction, correlation, correlation_said, first_by, predict

MODELS = 12


@pytest.fixture(scope="module")
def weights():
    return [each for n in range(MODELS) for each in weights_of(f"o/m{n}", random_result(n), "magnitude")]


def test_a_correlation_is_scipys_and_its_interval_that_of_whole_models_drawn_again(weights, monkeypatch):
    monkeypatch.setattr(prediction, "RESAMPLES", 40)
    alone = [each for each in weights if not each.zeroed_with]
    scores, effects = ([getattr(each, name) for each in alone] for name in ("magnitude", "delta"))
    scores = [round(score) for score in scores]  # ties
    rho, low, high = correlation(scores, effects, [each.model for each in alone])
    assert rho == pytest.approx(stats.spearmanr(scores, effects).statistic, abs=1e-12)
    generator, names, drawn = np.random.default_rng(SEED), sorted({each.model for each in alone}), []
    for _ in range(40):
        some = [names[n] for n in generator.integers(len(names), size=len(names))]
        pairs = [(s, e) for name in some for s, e, w in zip(scores, effects, alone, strict=True) if w.model == name]
        drawn.append(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=1e-9)
    assert low < rho < high


def test_what_is_in_each_correlation(weights):
    found = {(each.score, each.alone): each for each in predict(weights)}
    raw = [(n, w) for n in range(MODELS) for w in random_result(n)["super_weights"]]
    alone = [(n, w) for n, w in raw if w["zeroed_with"] is None]
    rho = stats.spearmanr([-w["static_rank"] for _, w in alone], [w["delta"] for _, w in alone]).statistic
    assert found["rank", True].rho == pytest.approx(rho, abs=1e-12)
    everything = stats.spearmanr([w["share"] for _, w in raw], [w["delta"] for _, w in raw]).statistic
    assert found["share", False].rho == pytest.approx(everything, abs=1e-12)
    by_gain = [-{0: 2, 1: 1}.get(w["col"], 3) for _, w in alone]  # two are known, the next rank is that of the others
    assert found["gain_rank", True].rho == pytest.approx(
        stats.spearmanr(by_gain, [w["delta"] for _, w in alone]).statistic, abs=1e-12
    )
    assert {key: (each.weights, each.models) for key, each in found.items() if key[0] in ("rank", "zscore")} == {
        ("rank", True): (36, 12),
        ("rank", False): (48, 12),
        ("zscore", True): (36, 12),
        ("zscore", False): (36, 12),
    }


def test_a_score_that_tells_and_one_that_does_not():
    draw = np.random.default_rng(3)
    models = [f"m{n % 30}" for n in range(300)]
    effects = draw.normal(size=300)
    rho, low, high = correlation(list(effects + draw.normal(size=300)), list(effects), models)
    assert 0.5 < low < rho < high < 0.85
    _, low, high = correlation(list(draw.normal(size=300)), list(effects), models)
    assert low < 0 < high
    assert correlation([1.0] * 300, list(effects), models) == (None, None, None)
    only_one = [float(model == "m7") for model in models]  # not drawn in every third drawing
    assert correlation(only_one, list(effects), models) == (None, None, None)


def test_too_few_are_said(weights):
    few = [each for each in weights if each.model in {f"o/m{n}" for n in range(9)}]
    assert predict(few)[0] == Prediction("rank", True, 27, 9)
    assert correlation_said(predict(few)[0]) == "too few: 27 weights of 9 models"
    assert predict([])[0] == Prediction("rank", True, 0, 0)
    assert correlation_said(Prediction("rank", True, 40, 12, 0.456, 0.1, -0.25)) == "ρ = +0.46, from +0.10 to -0.25"


def test_in_how_many_models_the_worst_weight_is_the_first():
    worst = {"o/a": 1, "o/b": 2, "o/c": 1}
    found = []
    for model, rank in worst.items():
        judged = [weight(0, 0, 0, 1.0, delta=5.0, static_rank=rank), weight(0, 0, 1, 1.0, static_rank=3 - rank)]
        found += weights_of(model, verified(judged, gain=[outlier(1, 0, 0, 0, 1.0)]), "magnitude")
    found += weights_of("o/d", verified([weight(0, 0, 0, 1.0, effect="inert")]), "magnitude")
    assert first_by(found, "rank") == (2, 3)
    assert first_by(found, "gain_rank") == (3, 3)
