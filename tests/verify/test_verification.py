"""The verdict on models whose answer is known: a planted super weight, random weights."""

import json

import numpy as np
import pytest
import torch
from families import FAMILIES, build
from models import (
    COL,
    DENSE,
    LAYER,
    MIXTURES,
    PLANTED,
    PROMPT_IDS,
    ROW,
    TEXT_IDS,
    VALUE,
    arguments,
    cue,
    found_at,
    load_plain,
    plant,
    plant_in,
    random_llama,
    save,
    sized,
    streams,
    verify_folder,
    with_large_weights,
)

from analyzer.analyze.scanning import scan_model
from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.base.records import Coordinate
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource
from analyzer.verify.activations.detection import Thresholds
from analyzer.verify.costs.effects import measure_effects

pytestmark = pytest.mark.early


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory):
    return save(plant(random_llama()), tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="module")
def planted(planted_folder):
    return verify_folder(planted_folder)


def test_finds_the_planted_weight(planted):
    assert planted.verdict == "found"
    weight = found_at(planted, PLANTED)
    assert weight.value == VALUE
    assert weight.static_rank == 1
    assert weight.status == "confirmed"
    assert weight.share == pytest.approx(1, abs=0.02)
    assert weight.activation_collapse > 0.95
    assert weight.round == 1
    assert planted.bytes_read <= planted.checkpoint_bytes * 3


def test_reports_the_planted_activation(planted):
    largest = planted.super_activations[0]
    assert (largest.channel, largest.position, largest.layer, largest.token) == (ROW, 0, LAYER, "apple")
    assert largest.last_layer == 5
    row = planted.layers[LAYER]
    assert (row.output_row, row.input_col, row.residual_channel) == (ROW, COL, ROW)


def test_the_profile_is_the_activation_with_and_without_its_weight(planted, planted_folder):
    plain = load_plain("llama", planted_folder)
    before = torch.stack(streams(plain.model, plain.blocks, PROMPT_IDS))[:, 0, 0, ROW]
    with torch.no_grad():
        plain.downs[LAYER, None][ROW, COL] = 0
    after = torch.stack(streams(plain.model, plain.blocks, PROMPT_IDS))[:, 0, 0, ROW]
    profile = planted.profile
    assert (profile.coordinate, profile.position) == (PLANTED, 0)
    assert profile.layers == tuple(range(6))
    np.testing.assert_allclose(profile.values, before, rtol=1e-4)
    np.testing.assert_allclose(profile.values_zeroed, after, rtol=0, atol=1e-4 * before.abs().max())
    peak = before.abs().argmax()
    collapse = found_at(planted, PLANTED).activation_collapse
    assert collapse == pytest.approx(1 - abs(after[peak] / before[peak]).item(), abs=1e-4)


# In usual proportions, and one of each make of MLP, norm and experts as small as it gets too; what has experts is
# planted in one of them.
@pytest.mark.parametrize(
    ("name", "width"),
    [
        *((name, 64) for name in DENSE + MIXTURES),
        *((name, 16) for name in ("llama", "gemma2", "gpt2", "opt", "bert", "mixtral", "gpt_oss", "llama4_text")),
    ],
)
def test_every_family(tmp_path, name, width):
    """Random weights have none; one weight planted among them is found, confirmed, and the only one."""
    model = with_large_weights(build(FAMILIES[name], **sized(name, width, 5))).eval()
    random = verify_folder(save(model, tmp_path / "random"))
    assert (random.verdict, random.super_activations) == ("none", ())
    assert not [w for w in random.super_weights if w.status != "rejected"]
    assert len(random.layers) == 5
    coordinate = Coordinate(1, plant_in(model, name), 5, 19)
    assert (coordinate.expert is not None) == (name in MIXTURES)
    result = verify_folder(save(model, tmp_path / "planted"))
    assert result.verdict == "found"
    largest = result.super_activations[0]
    assert (largest.layer, largest.channel, largest.position, largest.last_layer) == (1, 5, 0, 4)
    assert largest.median_ratio > 300
    assert [w.coordinate for w in result.super_weights if w.status == "confirmed"] == [coordinate]
    weight = found_at(result, coordinate)
    assert weight.share == pytest.approx(1, abs=0.01)
    assert weight.activation_collapse > 0.9
    assert weight.static_rank == 1
    assert weight.effect in ("critical", "inert")
    assert [w.coordinate for w in result.super_weights if w.status == "coincident"] == []


def test_an_echo_of_the_last_block_is_no_super_weight(tmp_path):
    result = verify_folder(save(plant(random_llama(), layer=5), tmp_path))
    assert abs(result.layers[5].residual_max) > 100 * abs(result.layers[4].residual_max)
    assert (result.verdict, result.super_activations) == ("none", ())
    late = found_at(result, Coordinate(5, None, ROW, COL))
    assert (late.status, late.reason, late.round) == ("late", "late", 1)
    assert (late.share, late.activation_collapse) == (pytest.approx(1, abs=0.02), pytest.approx(1, abs=0.05))
    assert {(a.layer, a.channel) for a in result.late_activations} == {(5, ROW)}
    assert late.change == pytest.approx(result.late_activations[0].value, rel=0.05)


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_a_channel_that_is_large_at_every_position_is_attributed_too(tmp_path, factor):
    """It says nothing of one token, and everything of its weight."""
    model = random_llama()
    (entered,) = arguments(model, model.model.layers[LAYER].mlp, PROMPT_IDS)
    with torch.no_grad():
        mlp = model.model.layers[LAYER].mlp
        mlp.gate_proj.weight[COL] = torch.linalg.pinv(entered[0]) @ torch.full((len(PROMPT_IDS),), 3.0)
        mlp.up_proj.weight[COL] = factor * mlp.gate_proj.weight[COL]
        mlp.down_proj.weight[ROW, COL] = VALUE
    result = verify_folder(save(model, tmp_path))
    assert {(a.channel, a.position, a.positions) for a in result.super_activations} == {(ROW, p, 8) for p in range(8)}
    assert [(f.channel, f.positions) for f in result.outlier_features] == [(ROW, 8)]
    weight = found_at(result, PLANTED)
    assert (result.verdict, weight.status, weight.reason) == ("found", "confirmed", None)
    assert weight.share == pytest.approx(1, abs=0.02)
    writes = [w for w in result.writes if w.channel == ROW]
    assert {w.position for w in writes} == set(range(8))
    assert weight.change == max((w.change for w in writes), key=abs)


def test_what_a_column_writes_at_once_is_one_event(tmp_path):
    """The order is that of what is written, not of shares: the same column writes a smaller channel all by itself."""
    model = random_llama()
    with torch.no_grad():
        mlp = model.model.layers[LAYER].mlp
        mlp.down_proj.weight[:, [COL, 60]] = 0
        plant(plant(model), row=5, value=0.5)
        mlp.gate_proj.weight[60] = mlp.up_proj.weight[60] = mlp.gate_proj.weight[COL]
        mlp.down_proj.weight[ROW, 60] = 1.5  # takes three sevenths of the largest write
    folder = save(model, tmp_path)
    result = verify_folder(folder)
    confirmed = [w for w in result.super_weights if w.status == "confirmed"]
    assert [(w.row, w.col) for w in confirmed] == [(ROW, COL), (5, COL), (ROW, 60)]
    assert confirmed[0].share < confirmed[1].share
    assert abs(confirmed[0].change) > abs(confirmed[1].change)
    assert confirmed[0].change == confirmed[2].change
    (column,) = result.columns
    assert (column.layer, column.col, column.rows) == (LAYER, COL, (ROW, 5))
    losses = []
    for zeroed in ([], [ROW, 5]):
        plain = load_plain("llama", folder)
        with torch.no_grad():
            plain.downs[LAYER, None][zeroed, COL] = 0
            logits = plain.model(torch.tensor([TEXT_IDS])).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(TEXT_IDS[1:])).item())
    assert column.delta == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert set(result.joint.coordinates) == {w.coordinate for w in confirmed}


def lone_outlier(folder, **options):
    (outlier,) = scan_model(FolderSource(folder), ScanSettings(top=1, use_cache=False, **options)).outliers
    return outlier.coordinate


@pytest.mark.parametrize("score", ["magnitude", "gain"])
@pytest.mark.parametrize("seen_by", ["magnitude", "gain"])
def test_a_static_candidate_of_either_score_is_screened_for_its_effect(tmp_path, seen_by, score):
    """On no super activation's channel, but the loss needs it; only one score sees it, whichever is asked for."""
    coordinate, decoy = Coordinate(2, None, 9, 4), Coordinate(3, None, 20, 60)
    model = cue(random_llama(), coordinate.layer, coordinate.row, coordinate.col, "banana", value=0.5)
    (entered,) = arguments(model, model.model.layers[3].mlp, TEXT_IDS)
    with torch.no_grad():
        if seen_by == "gain":  # a common weight of a loud channel, and a large one elsewhere
            mlp = model.model.layers[2].mlp
            mlp.up_proj.weight[4] *= 10
            mlp.down_proj.weight[:, 4] *= 0.1
            mlp.down_proj.weight[9, 4] = 0.05
        mlp = model.model.layers[3].mlp
        mlp.gate_proj.weight[60] = torch.linalg.pinv(entered[0]) @ torch.full((len(TEXT_IDS),), -60.0)  # silu is 0
        mlp.up_proj.weight[60] *= 50 if seen_by == "magnitude" else 0.01
        mlp.down_proj.weight[:, 60] *= 0.01  # or every row would be as loud
        mlp.down_proj.weight[20, 60] = 0.05 if seen_by == "magnitude" else 0.6
    save(model, tmp_path)
    seen = {seen_by: coordinate, "gain" if seen_by == "magnitude" else "magnitude": decoy}
    assert {each: lone_outlier(tmp_path, score=each) for each in ("magnitude", "gain")} == seen
    result = verify_folder(tmp_path, top=1, score=score)
    weight = found_at(result, coordinate)
    assert (weight.status, weight.effect) == ("rejected", "critical")
    assert weight.loss_zeroed > 1.01 * weight.loss
    assert (weight.reason, weight.change) == ("channel", None)
    assert result.verdict == "found"  # by what it costs
    assert result.super_activations == ()
    assert [w.coordinate for w in result.super_weights] == [
        coordinate
    ]  # the decoy is neither critical nor on a channel


def test_what_is_neither_on_a_channel_nor_critical_is_left_out(planted):
    on_channel = {activation.channel for activation in planted.super_activations}
    rejected = [w for w in planted.super_weights if w.status == "rejected"]
    assert all(w.row in on_channel or w.effect == "critical" for w in rejected)
    assert len(planted.super_weights) < 20


def test_what_moves_the_stream_far_is_looked_at_over_a_window_at_once(planted_folder, planted, monkeypatch):
    asked = []

    def watched(measuring, found, statics, loud):
        asked.append((loud, [weight.coordinate for weight in found]))
        return measure_effects(measuring, found, statics, loud)

    monkeypatch.setattr("analyzer.verify.verification.measure_effects", watched)
    assert verify_folder(planted_folder) == planted
    ((loud, every),) = asked
    assert loud == {PLANTED} < set(every)


def test_thresholds_are_options(planted_folder):
    assert verify_folder(planted_folder, thresholds=Thresholds(activation_ratio=1e7)).verdict == "none"


def test_a_model_too_shallow_to_tell_is_refused(tmp_path):
    with pytest.raises(ForwardError, match=r"has 2 block\(s\)"):
        verify_folder(save(plant(random_llama(num_hidden_layers=2)), tmp_path))


@pytest.mark.parametrize("claimed", [3, 10**9])
def test_a_config_that_lies_about_the_blocks_is_refused_unbuilt(tmp_path, claimed):
    save(plant(random_llama()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": claimed}))
    with pytest.raises(ArchitectureError, match=f"config.json says it has {claimed} blocks"):
        verify_folder(tmp_path)


def test_a_loss_that_is_no_number_is_an_error_not_inert(tmp_path):
    model = plant(random_llama())
    model.lm_head.weight.data[12] = float("nan")
    with pytest.raises(ForwardError, match="its loss on the evaluation text is not finite"):
        verify_folder(save(model, tmp_path))


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    save(plant(random_llama()), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ForwardError, match="holds an adapter"):
        verify_folder(tmp_path)


def test_the_same_input_gives_the_same_result(tmp_path, planted):
    assert verify_folder(save(plant(random_llama()), tmp_path / planted.model)) == planted


def test_a_model_that_is_dropped_block_by_block_gives_the_same_result(planted_folder, planted, monkeypatch):
    monkeypatch.setattr("analyzer.model.devices.KEEP_BYTES", 0)
    monkeypatch.setattr("analyzer.model.devices.CPU_ROW_BYTES", 1)
    again = verify_folder(planted_folder)
    assert again.bytes_read > planted.bytes_read
    for found, expected in zip(again.super_weights, planted.super_weights, strict=True):
        assert found.coordinate == expected.coordinate
        assert (found.status, found.effect) == (expected.status, expected.effect)
        assert found.loss_zeroed == pytest.approx(expected.loss_zeroed, rel=1e-6)


# Controls.
