"""Who writes a super activation, on models with planted weights: alone, masked by another, removing, masking others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import (
    COL,
    LAYER,
    PLANTED,
    PROMPT_IDS,
    ROW,
    VALUE,
    arguments,
    found_at,
    hooked,
    load_plain,
    plant,
    random_llama,
    save,
    save_random,
    streams,
    verify_folder,
)
from results import scan_result
from traces import entry, trace_of

from analyzer.base.records import Coordinate
from analyzer.verify.activations.search import moved_by, static_candidates


def test_an_activation_from_the_embedding_is_no_super_weights_doing(tmp_path):
    model = random_llama()
    model.model.embed_tokens.weight.data[1, 9] = 500.0  # the first token of PROMPT
    result = verify_folder(save(model, tmp_path))
    assert [(a.channel, a.position) for a in result.super_activations] == [(9, 0)]
    assert result.writes == ()
    assert result.verdict == "none"


def test_a_large_weight_on_the_channel_that_writes_nothing_is_rejected(tmp_path):
    model = plant(random_llama())
    model.model.layers[3].mlp.down_proj.weight.data[ROW, 7] = 1.5
    model.model.layers[3].mlp.gate_proj.weight.data[7] = 0  # silu(0) = 0: nothing comes in
    result = verify_folder(save(model, tmp_path))
    weight = found_at(result, Coordinate(3, None, ROW, 7))
    assert (weight.status, weight.effect, weight.static_rank, weight.share) == ("rejected", "inert", 2, 0)
    assert weight.loss_zeroed == pytest.approx(weight.loss, rel=1e-6)


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


def places_in_order(trace, weights):
    """Return the static candidates of these (layer, row, col, value) as (layer, row, col)."""
    candidates = static_candidates(trace, (), scan_result(weights).outliers, ())
    return [(candidate.layer, candidate.row, candidate.col) for candidate in candidates]


def test_what_moves_the_stream_least_is_the_first_candidate(tmp_path):
    """By a plain model: each weight times what comes to it, over the norm of the stream, at the token where most."""
    model = plant(random_llama())
    down = [layer.mlp.down_proj.weight.detach() for layer in model.model.layers]
    layers, rows, cols = (np.random.default_rng(0).integers(most, size=12) for most in (4, *down[0].shape))
    weights = [(*map(int, c), down[c[0]][c[1], c[2]].item()) for c in zip(layers, rows, cols, strict=True)]
    weights.append((LAYER, ROW, COL, VALUE))
    after = streams(model, model.model.layers, PROMPT_IDS)

    def moved(layer, _, col, value):
        (entered,) = arguments(model, model.model.layers[layer].mlp.down_proj, PROMPT_IDS)
        return (value * entered[0, :, col] / after[layer][0].norm(dim=-1)).abs().max().item()

    wanted = sorted(weights, key=lambda w: moved(*w))
    assert wanted[-1][:3] == (LAYER, ROW, COL)
    trace = hooked(save(model, tmp_path)).runner.trace(PROMPT_IDS)
    assert places_in_order(trace, weights) == [w[:3] for w in wanted]


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_what_follows_an_only_mlp_is_a_part_of_what_moves_the_stream(tmp_path, name):
    folder = save_random(name, tmp_path)
    plain, trace = load_plain(name, folder), hooked(folder).runner.trace(PROMPT_IDS)
    after = streams(plain.model, plain.blocks, PROMPT_IDS)
    for (layer, _), view in plain.downs.items():
        value = view[3, 7].item()
        view[3, 7] = 0
        moved = streams(plain.model, plain.blocks, PROMPT_IDS)[layer] - after[layer]
        view[3, 7] = value
        wanted = (moved.norm(dim=-1) / after[layer].norm(dim=-1)).max().item()
        assert moved_by(trace, Coordinate(layer, None, 3, 7), value) == pytest.approx(wanted, rel=0.1)


def test_what_a_norm_adds_of_a_candidate_and_how_the_router_weighs_it_counts():
    stream = np.full((1, 2, 4), 2.0, np.float32)  # of norm 4 at both tokens
    padding = [9.0, 9.0, 9.0]  # to a window, where a model's attention wants one
    entries = [entry([[1.0, 8.0, 3.0], [0.0, 0.0, 0.0], padding], positions=(0, 1, 2), routed=[0.5, 1.0, 1.0])]
    output = np.array([[1.0, 2.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    added = [output * [6.0, 1.0, 1.0, 1.0]]
    trace = trace_of(entries, output, residual=stream, added=added)
    # Moved by 1 * .5 * 6, 1 * .5, 8 * .5 and 3 * .5 of 4; by nothing where nothing is given.
    weights = [(5, 0, 0, 1.0), (5, 1, 0, 1.0), (5, 1, 1, -1.0), (5, 2, 2, 1.0), (5, 3, 1, 1.0)]
    assert places_in_order(trace, weights) == [(5, 3, 1), (5, 1, 0), (5, 2, 2), (5, 0, 0), (5, 1, 1)]
    assert places_in_order(replace(trace, outputs={}, added={}), weights) == [w[:3] for w in weights]  # of a latent
    assert places_in_order(trace, [(4, 0, 0, 1.0)]) == []  # of a block that did not run
