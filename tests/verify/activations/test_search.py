"""Who writes a super activation, on models with planted weights: alone, masked by another, removing, masking others."""

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
    plant,
    random_llama,
    save,
    streams,
    verify_folder,
)

from analyzer.base.records import Coordinate


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
