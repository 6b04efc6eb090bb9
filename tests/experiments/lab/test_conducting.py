"""All experiments on one model: the same figures as each by itself, and nothing measured twice."""

from dataclasses import replace

import pytest
from models import PLANTED

from analyzer.base.records import Coordinate
from analyzer.experiments import bits, massive, prune, quantize, scale, ticket
from analyzer.experiments.lab import calibrating, opening
from analyzer.experiments.lab.asked import Settings
from analyzer.experiments.lab.conducting import conduct, conduct_all
from analyzer.experiments.reports.report import protocol_said
from analyzer.source.folder import FolderSource

SECOND = Coordinate(3, None, 5, 19)
EXPERIMENTS = tuple(each.EXPERIMENT for each in (prune, scale, quantize, massive, ticket, bits))


@pytest.fixture(scope="module")
def settings(planted):
    return Settings(weights=(PLANTED, SECOND), data=str(planted[0] / "text.txt"), windows=8, length=12)


@pytest.fixture(scope="module")
def together(planted, settings):
    """All of them: the results by name, and what was run untouched and calibrated for them."""
    ran, calibrated = [], []
    plain, states = opening.token_losses, calibrating.changing_inputs

    def recorded(runner, pairs, *more):
        ran.extend((id(runner), *pair) for pair in pairs if runner.blocks.change is None)
        return plain(runner, pairs, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "token_losses", recorded)
        patch.setattr(calibrating, "changing_inputs", lambda *a: (calibrated.append(a), states(*a))[1])
        results = {each.name: found for each, found in conduct_all(FolderSource(planted[0]), EXPERIMENTS, settings)}
    return results, ran, calibrated


def test_what_several_experiments_measure_is_run_once(together):
    results, ran, calibrated = together
    assert len(ran) == len(set(ran)) > 100
    assert len(calibrated) == 1
    untouched = {result.outcome.arms[0].cost.nll for name, result in results.items() if name in ("prune", "scale")}
    assert len(untouched) == 1
    assert results["scale"].protocol["runs"] == 4  # of five factors: original and all zeroed are prune's


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_each_says_what_it_says_by_itself(planted, settings, together, experiment):
    found = together[0][experiment.name]
    sizes = {name: min(experiment.in_all.get(name, 99), getattr(settings, name)) for name in ("windows", "length")}
    own = {name: value for name, value in experiment.in_all.items() if name not in sizes}
    alone = conduct(FolderSource(planted[0]), experiment, replace(settings, **sizes), **own)
    less = f"{experiment.less}; the full set: superweight experiment {experiment.name}" if experiment.less else None
    assert found.protocol.get("less") == less
    assert (less or "") in protocol_said(found.protocol)
    assert [arm.name for arm in found.outcome.arms] == [arm.name for arm in alone.outcome.arms]
    for arm, other in zip(found.outcome.arms, alone.outcome.arms, strict=True):
        assert arm.cost.nll == pytest.approx(other.cost.nll, abs=1e-5)
