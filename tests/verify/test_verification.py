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
    TEXT,
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
    save_random,
    sized,
    streams,
    verify_folder,
    with_large_weights,
)

from analyzer.analyze.scanning import scan_model
from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.base.records import Coordinate
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.down_projections import down_projections
from analyzer.scan.ranks import nearest_weights
from analyzer.scan.records import ScanSettings
from analyzer.source.folder import FolderSource
from analyzer.verify.detection import Thresholds


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


# Each in its own small width and in one of usual proportions; what has experts is planted in one of them.
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("name", DENSE + MIXTURES)
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


def test_an_activation_from_the_embedding_is_no_super_weights_doing(tmp_path):
    model = random_llama()
    model.model.embed_tokens.weight.data[1, 9] = 500.0  # the first token of PROMPT
    result = verify_folder(save(model, tmp_path))
    assert [(a.channel, a.position) for a in result.super_activations] == [(9, 0)]
    assert result.writes == ()
    assert result.verdict == "none"


def test_an_echo_of_the_last_block_is_no_super_weight(tmp_path):
    result = verify_folder(save(plant(random_llama(), layer=5), tmp_path))
    assert abs(result.layers[5].residual_max) > 100 * abs(result.layers[4].residual_max)
    assert (result.verdict, result.super_activations) == ("none", ())


def test_a_large_weight_on_the_channel_that_writes_nothing_is_rejected(tmp_path):
    model = plant(random_llama())
    model.model.layers[3].mlp.down_proj.weight.data[ROW, 7] = 1.5
    model.model.layers[3].mlp.gate_proj.weight.data[7] = 0  # silu(0) = 0: nothing comes in
    result = verify_folder(save(model, tmp_path))
    weight = found_at(result, Coordinate(3, None, ROW, 7))
    assert (weight.status, weight.effect, weight.static_rank, weight.share) == ("rejected", "inert", 2, 0)
    assert weight.loss_zeroed == pytest.approx(weight.loss, rel=1e-6)


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
    assert result.verdict == "none"
    assert result.super_activations == ()
    assert [w.coordinate for w in result.super_weights] == [
        coordinate
    ]  # the decoy is neither critical nor on a channel


def test_what_is_neither_on_a_channel_nor_critical_is_left_out(planted):
    on_channel = {activation.channel for activation in planted.super_activations}
    rejected = [w for w in planted.super_weights if w.status == "rejected"]
    assert all(w.row in on_channel or w.effect == "critical" for w in rejected)
    assert len(planted.super_weights) < 20


def test_a_weight_masked_by_another_is_found_in_a_later_round(tmp_path):
    model = plant(random_llama())
    # Both write the same channel from the same token, the second a fifth of what the first does.
    plant(model, value=VALUE / 4, col=COL + 1)
    result = verify_folder(save(model, tmp_path))
    by_col = {w.col: w for w in result.super_weights if w.row == ROW and w.layer == LAYER}
    assert by_col[COL].share == pytest.approx(0.8, abs=0.02)
    assert by_col[COL + 1].status == "confirmed"  # only visible once the first is zeroed: its share was 0.2
    assert by_col[COL + 1].share == pytest.approx(1, abs=0.05)
    assert (by_col[COL].round, by_col[COL + 1].round) == (1, 2)
    assert {c.col for c in result.joint.coordinates} >= {COL, COL + 1}


def test_a_removing_write_is_attributed_but_only_coincident(tmp_path):
    model = plant(random_llama())
    plain = torch.stack(streams(model, model.model.layers, PROMPT_IDS))[:, 0]
    (entered,) = arguments(model, model.model.layers[4].mlp, PROMPT_IDS)
    with torch.no_grad():
        mlp = model.model.layers[4].mlp
        only = torch.linalg.pinv(entered[0])[:, 0] * 3
        mlp.gate_proj.weight[50] = mlp.up_proj.weight[50] = only
        inner = (torch.nn.functional.silu(torch.tensor(3.0)) * 3).item()
        mlp.down_proj.weight[ROW, 50] = -0.9 * plain[3, 0, ROW].item() / inner
    result = verify_folder(save(model, tmp_path))
    assert [(w.layer, w.change > 0) for w in result.writes if w.channel == ROW] == [(1, True), (4, False)]
    removing = found_at(result, Coordinate(4, None, ROW, 50))
    assert (removing.status, removing.share > 0.9) == ("coincident", True)
    assert removing.activation_collapse <= 0
    assert found_at(result, PLANTED).status == "confirmed"


def test_masking_tells_what_zeroing_does_to_other_activations(tmp_path):
    """The second activation is written by a channel that listens to the first: without the first there is neither."""
    model = plant(random_llama())
    with torch.no_grad():
        mlp = model.model.layers[3].mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[60] = 0
            projection.weight[60, ROW] = 1
        mlp.down_proj.weight[5] = 0
        mlp.down_proj.weight[5, 60] = 1
    result = verify_folder(save(model, tmp_path))
    assert {(a.channel, a.position) for a in result.super_activations} >= {(ROW, 0), (5, 0)}
    (masking,) = [masking for masking in result.masking if masking.coordinate == PLANTED]
    assert (5, 0) in masking.vanished
    assert not {(ROW, 0), (5, 0)} & set(masking.appeared)
    with torch.no_grad():
        model.model.layers[LAYER].mlp.down_proj.weight[ROW, COL] = 0
    alone = verify_folder(save(model, tmp_path))
    left = {(a.channel, a.position) for a in alone.super_activations if a.channel != ROW}
    before = {(a.channel, a.position) for a in result.super_activations if a.channel != ROW}
    assert (set(masking.vanished), set(masking.appeared)) == (before - left, left - before)


def test_thresholds_are_options(planted_folder):
    assert verify_folder(planted_folder, thresholds=Thresholds(activation_ratio=1e7)).verdict == "none"


def test_a_prompt_must_have_some_tokens(planted_folder):
    with pytest.raises(ForwardError, match="the prompt has only 2"):
        verify_folder(planted_folder, prompt="apple banana")


def test_a_prompt_must_fit(planted_folder):
    with pytest.raises(ForwardError, match=r"the prompt has 65 tokens, .* has 64 positions"):
        verify_folder(planted_folder, prompt=TEXT + " apple")


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


def test_controls_are_nearest_in_magnitude_and_random(tmp_path):
    """Both of the losses that are shown, by editing each weight in a plain model."""
    model = cue(random_llama(), 2, 9, 4, "banana", value=0.5)
    result = verify_folder(save(model, tmp_path), top=1)
    weight = found_at(result, Coordinate(2, None, 9, 4))
    down = model.model.layers[2].mlp.down_proj.weight
    distance = (down.detach().abs() - 0.5).abs()
    distance[9] = float("inf")
    near = [divmod(place, down.shape[1]) for place in distance.flatten().argsort()[:2].tolist()]
    # The documented draw: rows and columns of a generator seeded with (0, layer, 0), those of the own row left out.
    generator = np.random.default_rng([0, 2, 0])
    drawn = zip(*(generator.integers(size, size=1000) for size in down.shape), strict=True)
    random = [(int(row), int(col)) for row, col in drawn if row != 9][:2]
    for places, shown in ((near, weight.control_loss_nearest), (random, weight.control_loss_random)):
        assert shown == pytest.approx(max(edited_loss(model, 2, place) for place in places), rel=1e-6)
    assert weight.control_loss_max == max(weight.control_loss_nearest, weight.control_loss_random)
    assert weight.loss_zeroed == pytest.approx(edited_loss(model, 2, (9, 4)), rel=1e-5)
    assert weight.loss_zeroed - weight.loss > 10 * (weight.control_loss_max - weight.loss)


@pytest.mark.parametrize("block_bytes", [100, 1 << 20])
@pytest.mark.parametrize(("name", "expert"), [("llama", None), ("gpt2", None), ("mixtral", 2), ("gpt_oss", 3)])
def test_nearest_weights_are_nearest(tmp_path, name, expert, block_bytes):
    """Of other rows, by brute force, whichever way round the matrix is stored; nearest of all is the weight itself."""
    plain = load_plain(name, save_random(name, tmp_path))
    source = FolderSource(tmp_path)
    source.block_bytes = block_bytes
    checkpoint = Checkpoint(source)
    (projection,) = [p for p in down_projections(checkpoint) if (p.layer, p.expert) == (1, expert)]
    down = plain.downs[1, expert].detach().abs()
    for row, col in ((0, 3), (5, 19), (11, 7)):
        distance = (down - down[row, col]).abs()
        distance[row] = float("inf")
        expected = [divmod(place, down.shape[1]) for place in distance.flatten().argsort()[:5].tolist()]
        found = nearest_weights(checkpoint, projection, Coordinate(1, expert, row, col), 5)
        assert {(c.layer, c.expert) for c in found} == {(1, expert)}
        assert [(c.row, c.col) for c in found] == expected


def edited_loss(model, layer, place):
    view = model.model.layers[layer].mlp.down_proj.weight
    with torch.no_grad():
        kept = view[place].item()
        view[place] = 0
        logits = model(torch.tensor([TEXT_IDS])).logits[0, :-1]
        view[place] = kept
    return torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT_IDS[1:])).item()
