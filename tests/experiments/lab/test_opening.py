"""The lab: what it opens, what it splits off to calibrate on, and arms of both kinds in one table."""

import weakref

import pytest
import torch
from models import PLANTED, plant, random_llama, save, save_random
from plainly import losses, times, windows

from analyzer.base.errors import ForwardError
from analyzer.experiments import prune, scale, tokens
from analyzer.experiments.lab.opening import Lab
from analyzer.experiments.lab.records import Arm, Experiment, Outcome
from analyzer.forward.edits import zeroing


@pytest.fixture
def opened(run):
    """Return the lab that an experiment is handed, and what it returns."""

    def open_it(arms=(), *, calibrates=False, **options):
        seen = []

        def keep(lab):
            seen.append(lab)
            return Outcome(lab.measure(arms), ())

        result = run(Experiment("any", "Any.", keep, calibrates=calibrates), **options)
        return seen[0], result.as_json()

    return open_it


def test_windows_are_those_of_the_text(planted, opened):
    lab, document = opened()
    assert [list(window.ids) for window in lab.windows] == windows(planted[0], 12).tolist()
    assert lab.calibration == ()
    assert "calibration" not in document["protocol"]


def test_the_first_half_is_calibrated_on_and_not_judged(planted, opened):
    lab, document = opened(calibrates=True)
    batch = windows(planted[0], 12).tolist()
    assert [list(window.ids) for window in lab.calibration] == batch[:4]
    assert [list(window.ids) for window in lab.windows] == batch[4:]
    assert document["protocol"]["calibration"] == {"data": "text.txt", "windows": 4}
    assert document["protocol"]["tokens"] == 4 * 11


def test_or_another_text_is(planted, opened, tmp_path):
    (tmp_path / "other.txt").write_text("apple " * 30)
    lab, document = opened(calibrates=True, settings={"calibrate": str(tmp_path / "other.txt"), "windows": 3})
    assert [window.ids for window in lab.calibration] == [(1,) * 12] * 2
    assert len(lab.windows) == 3
    assert document["protocol"]["calibration"]["data"] == "other.txt"


def test_one_window_is_too_few_to_calibrate_on(opened):
    with pytest.raises(ForwardError, match=r"one more is needed to calibrate on: .*--calibrate"):
        opened(calibrates=True, settings={"windows": 1})


def test_rows_and_changed_weights_are_arms_of_one_table(planted, opened):
    folder, plain = planted
    name = f"model.layers.{PLANTED.layer}.mlp.down_proj.weight"

    def halve(stored, tensor):
        return tensor / 2 if stored == name else tensor

    arms = [
        Arm("halved", change=halve),
        Arm("zeroed", zeroing([PLANTED]), 1),
        Arm("both", zeroing([PLANTED]), 1, halve),
    ]
    _, document = opened(arms)
    batch = windows(folder, 12)
    weight = plain.model.get_parameter(name.removeprefix("model."))
    with torch.no_grad():
        with times(plain, {PLANTED: 0.0}):
            zeroed = losses(plain, batch).mean()
        weight.mul_(0.5)
        halved = losses(plain, batch).mean()
        with times(plain, {PLANTED: 0.0}):
            both = losses(plain, batch).mean()
        weight.mul_(2)
    assert [arm["name"] for arm in document["arms"]] == ["original", "halved", "zeroed", "both"]
    assert [arm["nll"] for arm in document["arms"]] == pytest.approx(
        [losses(plain, batch).mean(), halved, zeroed, both], abs=1e-4
    )
    assert document["protocol"]["runs"] == 4


def test_models_with_changed_weights_do_not_pile_up(opened, monkeypatch):
    made, alive = weakref.WeakSet(), []
    changed = Lab.changed

    def counted(lab, change):
        runner = changed(lab, change)
        made.add(runner.blocks.model)
        alive.append(len(made))
        return runner

    monkeypatch.setattr(Lab, "changed", counted)
    opened([Arm(str(number), change=lambda _name, tensor, by=number: tensor / by) for number in range(1, 6)])
    assert alive == [1] * 5


def test_a_masked_model_has_losses_too(run, tmp_path):
    folder = save_random("bert", tmp_path / "bert")
    weight = PLANTED._replace(row=5, col=19)
    result = run(Experiment("any", "Any.", lambda lab: Outcome(lab.measure([]), ())), folder=folder, weights=(weight,))
    assert result.as_json()["protocol"]["tokens"] == 8 * 2  # every seventh


def test_a_window_too_short_for_a_masked_token_is_told(run, tmp_path):
    folder = save_random("bert", tmp_path / "bert")
    weight = PLANTED._replace(row=5, col=19)
    nothing = Experiment("any", "Any.", lambda lab: Outcome(lab.measure([]), ()))
    with pytest.raises(ForwardError, match="too short for a window of 3 tokens"):
        run(nothing, folder=folder, weights=(weight,), length=3)


@pytest.mark.parametrize(
    "experiment", [prune.EXPERIMENT, scale.EXPERIMENT, tokens.EXPERIMENT], ids=lambda each: each.name
)
def test_a_model_that_says_no_number_is_told(run, tmp_path, experiment):
    model = plant(random_llama())
    model.lm_head.weight.data[5] = torch.nan
    with pytest.raises(ForwardError, match=r"what it says of \w+\.txt is not finite in float32"):
        run(experiment, folder=save(model, tmp_path))
