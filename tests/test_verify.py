"""The verdict on models whose answer is known: a planted super weight, random weights, and the real sample model."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import (
    COL,
    DENSE,
    LAYER,
    MIXTURES,
    PROMPT,
    PROMPT_IDS,
    ROW,
    TEXT,
    TEXT_IDS,
    VALUE,
    WORDS,
    arguments,
    cue,
    hooked,
    load_plain,
    plant,
    plant_in,
    random_llama,
    save,
    save_random,
    save_tokenizer,
    sized,
    streams,
    with_large_weights,
)
from safetensors.torch import load_file, save_file
from sample_model import sample_model_folder
from test_families import FAMILIES, build

from analyzer.analyze import evaluation_text, run_scan, run_verify
from analyzer.checkpoint import INDEX, Checkpoint
from analyzer.detection import Thresholds, detect
from analyzer.errors import ArchitectureError, ForwardError
from analyzer.forward import HookedModel
from analyzer.records import Coordinate
from analyzer.scan import down_projections, nearest_weights
from analyzer.source import FolderSource, open_source
from analyzer.verify import verify

SAMPLE = sample_model_folder()
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason="the sample model is not built: tools/sample_model.py")
PAPER_PROMPT = "Apple Inc. is a worldwide tech company."
PLANTED = Coordinate(LAYER, None, ROW, COL)


def verify_folder(folder, prompt=PROMPT, text=TEXT, **options):
    return run_verify(FolderSource(folder), prompt=prompt, text=text, **{"top": 20, **options})[2]


def found_at(result, coordinate):
    return next(w for w in result.super_weights if w.coordinate == coordinate)


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
    (outlier,) = run_scan(FolderSource(folder), top=1, use_cache=False, **options).outliers
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
    options = {"prompt": PROMPT, "text": TEXT, "outliers": (), "rank": lambda cs: dict.fromkeys(cs, 1)}
    options["nearest"] = lambda *_: ()
    model = hooked(planted_folder)
    assert verify(model, **options).verdict == "found"
    assert verify(model, **options, thresholds=Thresholds(activation_ratio=1e7)).verdict == "none"


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
    monkeypatch.setattr("analyzer.forward.KEEP_BYTES", 0)
    monkeypatch.setattr("analyzer.forward.CPU_ROW_BYTES", 1)
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


# Early stop.


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """Twelve blocks, the super weight in block 1, an embedding and head that outweigh a block."""
    model = plant(random_llama(num_hidden_layers=12, vocab_size=500))
    return save(model, tmp_path_factory.mktemp("models") / "deep")


def check_early(result, whole):
    assert (result.verdict, result.early_stop) == ("found", True)
    assert result.bytes_read < 0.5 * result.checkpoint_bytes
    assert [w.coordinate for w in result.super_weights] == [PLANTED]
    found, expected = found_at(result, PLANTED), found_at(whole, PLANTED)
    assert (found.status, found.share) == (expected.status, pytest.approx(expected.share, abs=1e-6))
    assert (found.effect, found.loss, found.loss_zeroed, found.control_loss_max, found.static_rank) == (None,) * 5
    assert result.joint is None
    assert [row.layer for row in result.layers] == [0, 1, 2, 3]  # where it shows, and two blocks more
    assert result.super_activations[0].last_layer == 3


def test_early_stop_reads_a_few_blocks(deep_folder):
    whole = verify_folder(deep_folder)
    assert found_at(whole, PLANTED).status == "confirmed"
    check_early(verify_folder(deep_folder, early_stop=True), whole)


def test_early_stop_over_the_hub_downloads_no_weights(hub, deep_folder):
    hub.add("me/deep", deep_folder)
    source = open_source("me/deep")
    result = run_verify(source, prompt=PROMPT, text=TEXT, early_stop=True)[2]
    check_early(result, verify_folder(deep_folder))
    assert all(request.range is not None for request in hub.asked("cdn"))
    assert hub.body_bytes["cdn"] < 0.5 * result.checkpoint_bytes
    assert not list(source.folder(()).glob("*.safetensors"))


def test_early_stop_does_not_wait_for_a_block_that_it_does_not_need(hub, superweight, deep_folder):
    """The next block is read ahead; here those bytes never come, and the command ends all the same."""
    hub.add("me/deep", deep_folder)
    tensors = Checkpoint(FolderSource(deep_folder)).tensors
    names = [name for name in tensors if name.startswith("model.layers.4.")]
    start = min(tensors[name].record.start for name in names)
    stop = max(tensors[name].record.stop for name in names)
    stalled = []

    def tamper(request, reply):
        first, _, last = (request.range or "").removeprefix("bytes=").partition("-")
        if request.origin == "cdn" and first and int(first) < stop and int(last) >= start:
            stalled.append(request)
            return replace(reply, stall=True, cut=0)
        return reply

    hub.tamper = tamper
    began = time.monotonic()
    process = superweight("verify", "me/deep", "--early-stop", "--json", "--prompt", PROMPT)
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    assert json.loads(output)["verdict"] == "found"
    assert stalled
    assert time.monotonic() - began < 30


def test_early_stop_without_a_super_activation_is_none(tmp_path):
    result = verify_folder(save(random_llama(), tmp_path), early_stop=True)
    assert (result.verdict, result.super_weights) == ("none", ())
    assert len(result.layers) == 6


# Several prompts.

PROMPTS = [
    "apple banana cherry",
    "banana apple cherry date elder",
    "iris juniper kiwi lemon",
    "apple",  # too short to tell
    "pear olive nutmeg mango apple lemon kiwi juniper",
    "grape apple grape fig apple hazel fig fig grape",
    "cherry banana apple",
]


def counted_by_hand(plain, prompts):
    """In how many prompts, and where, each (layer, channel) holds the largest of its super activations there."""
    places = {}
    for prompt in prompts:
        ids = [WORDS.index(word) + 1 if word in WORDS else 18 for word in prompt.split()]
        if len(ids) < 3:
            continue
        stream = torch.stack(streams(plain.model, plain.blocks, ids))[:, 0].numpy()
        best = {}
        for activation in detect(stream, range(len(stream)), [""] * len(ids), Thresholds())[0]:
            place = (activation.layer, activation.channel)
            if place not in best or abs(activation.value) > abs(best[place].value):
                best[place] = activation
        for place, activation in best.items():
            places.setdefault(place, []).append(activation.position)
    return {place: (len(where), tuple(sorted(set(where)))) for place, where in places.items()}


def test_recurrences_over_prompts_are_those_of_each_alone(tmp_path):
    save(plant(random_llama(), value=0.2), tmp_path)
    result = verify_folder(tmp_path, prompts=PROMPTS)
    expected = counted_by_hand(load_plain("llama", tmp_path), PROMPTS)
    assert result.prompts == len(PROMPTS)
    assert {(r.layer, r.channel): (r.prompts, r.positions) for r in result.recurrences} == expected
    assert expected[LAYER, ROW] == (5, (0, 1, 2, 4))
    assert {r.without_bos for r in result.recurrences} == {None}
    assert [r.prompts for r in result.recurrences] == sorted((r.prompts for r in result.recurrences), reverse=True)


def test_long_prompts_ride_in_as_many_passes_as_memory_asks_for(tmp_path, monkeypatch):
    save(plant(random_llama(), value=0.2), tmp_path)
    at_once = verify_folder(tmp_path, prompts=PROMPTS)
    run, residuals = [], HookedModel.residuals

    def watched(self, prompts, interventions, **options):
        run.append(len(prompts))
        return residuals(self, prompts, interventions, **options)

    monkeypatch.setattr(HookedModel, "residuals", watched)
    monkeypatch.setattr("analyzer.verify.STREAM_BYTES", 4 * 6 * 9 * 128 * 3)  # of three of the longest prompt
    apart = verify_folder(tmp_path, prompts=PROMPTS)
    assert run[-2:] == [3, 3]
    assert apart.recurrences == at_once.recurrences
    assert [w.coordinate for w in apart.super_weights] == [w.coordinate for w in at_once.super_weights]


def test_recurrences_with_and_without_the_beginning_of_sequence(tmp_path):
    """Planted on the token that begins every text: gone where the prompts come without it."""
    model = random_llama()
    with torch.no_grad():
        first = model.model.embed_tokens.weight[18].clone()
        mlp = model.model.layers[LAYER].mlp
        mlp.gate_proj.weight[COL] = mlp.up_proj.weight[COL] = first / first.norm() * 3
        mlp.down_proj.weight[ROW, COL] = 0.4
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos=True)
    result = verify_folder(tmp_path, prompts=PROMPTS)
    plain = load_plain("llama", tmp_path)
    with_bos = counted_by_hand(plain, [f"<s> {prompt}" for prompt in PROMPTS])
    without = counted_by_hand(plain, PROMPTS)
    found = {(r.layer, r.channel): (r.prompts, r.positions) for r in result.recurrences}
    assert found == with_bos
    assert {(r.layer, r.channel): r.without_bos for r in result.recurrences} == {
        place: without.get(place, (0,))[0] for place in with_bos
    }
    assert with_bos[LAYER, ROW] == (6, (0,))
    assert result.recurrences[0].without_bos == 0
    assert result.tokens[0] == "<s>"


def test_recurrences_of_a_bidirectional_model_run_each_prompt_by_itself(tmp_path, monkeypatch):
    """What follows a prompt would change it there, so they cannot share a padded batch."""
    model = with_large_weights(build(FAMILIES["modernbert"], **sized("modernbert", 16, 5))).eval()
    plant_in(model, "modernbert")
    save(model, tmp_path)
    prompts = [PROMPT, "apple banana cherry date elder", "iris juniper kiwi", PROMPT + " pear pear pear"]
    run, residuals = [], HookedModel.residuals

    def watched(self, prompts, interventions, **options):
        run.append([len(prompt) for prompt in prompts])
        return residuals(self, prompts, interventions, **options)

    monkeypatch.setattr(HookedModel, "residuals", watched)
    result = verify_folder(tmp_path, prompts=prompts)
    assert run[-4:] == [[8], [5], [3], [11]]
    expected = counted_by_hand(load_plain("modernbert", tmp_path), prompts)
    assert {(r.layer, r.channel): (r.prompts, r.positions) for r in result.recurrences} == expected
    assert expected


# The sample model, once a session: a short text keeps it fast.


@pytest.fixture(scope="module")
def sample():
    torch.set_num_threads(2)
    yield verify_folder(SAMPLE, prompt=PAPER_PROMPT, text=evaluation_text()[:600], top=3)
    torch.set_num_threads(1)


@needs_sample
def test_the_sample_models_super_weight(sample):
    assert sample.verdict == "found"
    best = sample.super_weights[0]
    assert best.coordinate == Coordinate(11, None, 507, 1229)
    assert (best.value, best.static_rank, best.status, best.effect) == (5.875, 2, "confirmed", "critical")
    assert best.share == pytest.approx(0.733, abs=0.001)
    assert best.loss_zeroed > best.loss + 1
    assert abs(best.control_loss_max - best.loss) < 0.05


@needs_sample
def test_the_sample_models_removing_weight_is_inert(sample):
    weight = found_at(sample, Coordinate(28, None, 507, 678))
    assert (weight.value, weight.static_rank, weight.status, weight.effect) == (-5.78125, 3, "coincident", "inert")


@needs_sample
def test_the_sample_models_maxima_agree_with_hooks_of_our_own(sample):
    model = transformers.AutoModelForCausalLM.from_pretrained(SAMPLE, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(SAMPLE)
    seen = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_hook(
            lambda _m, args, out, layer=layer: seen.__setitem__(layer, (args[0][0], out[0]))
        )
    with torch.no_grad():
        hidden = model(**tokenizer(PAPER_PROMPT, return_tensors="pt"), output_hidden_states=True).hidden_states
    for row in sample.layers:
        entered, left = (tensor.abs().max().item() for tensor in seen[row.layer])
        assert abs(row.input_max) == pytest.approx(entered, rel=0.01)
        assert abs(row.output_max) == pytest.approx(left, rel=0.01)
        if row.layer < 29:  # the library's last entry has been through the final norm
            assert abs(row.residual_max) == pytest.approx(hidden[row.layer + 1].abs().max().item(), rel=0.01)
    assert sample.layers[11].output_max == pytest.approx(24045, rel=0.001)
    assert sample.layers[11].input_max == pytest.approx(2999, rel=0.001)


@needs_sample
def test_the_sample_models_super_activation(sample):
    largest = sample.super_activations[0]
    assert (largest.layer, largest.last_layer, largest.channel, largest.position) == (11, 29, 507, 0)
    writes = {(w.layer, w.channel): w for w in sample.writes if w.position == 0}
    assert writes[11, 507].change > 24_000
    assert writes[9, 507].change < -400  # taken away before it is written again
    assert writes[28, 507].change < -14_000


@needs_sample
def test_a_shuffled_copy_of_the_sample_model_has_none(tmp_path):
    """The same numbers in every down projection, each in another place."""
    generator = torch.Generator().manual_seed(0)
    for path in SAMPLE.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
            continue
        tensors = load_file(path)
        for name, tensor in sorted(tensors.items()):
            if "down_proj" in name:
                order = torch.randperm(tensor.numel(), generator=generator)
                tensors[name] = tensor.flatten()[order].reshape(tensor.shape)
        save_file(tensors, tmp_path / path.name, metadata={"format": "pt"})
    assert (tmp_path / INDEX).exists()
    result = verify_folder(tmp_path, prompt=PAPER_PROMPT, text=evaluation_text()[:100], top=1)
    assert result.verdict == "none"
    assert not [w for w in result.super_weights if w.status != "rejected"]


STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K"


@pytest.mark.skipif(not STORIES.exists(), reason="the measuring data are not here")
def test_a_real_model_without_super_activation_has_none():
    model = hooked(STORIES)
    ids = [1, *np.random.default_rng(0).integers(3, 512, 40).tolist()]
    trace = model.trace(ids)
    activations, _ = detect(trace.residual, trace.layers, tuple(map(str, ids)), Thresholds())
    assert activations == ()
