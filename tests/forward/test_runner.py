"""The hooked model against plain transformers: the same figures by other means."""

import numpy as np
import pytest
import torch
from models import (
    COL,
    LAYER,
    LAYERS,
    PLANTED,
    PROMPT,
    ROW,
    VALUE,
    hooked,
    load_plain,
    plant,
    random_llama,
    save,
    save_random,
    streams,
)

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate


def test_trace_is_what_transformers_computes(planted):
    model, analyzed = planted
    ids = analyzed.tokens.ids(PROMPT)
    trace = analyzed.trace(ids)
    with torch.no_grad():
        # The library's own record: its last entry has been through the final norm, the others are the stream.
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(trace.entering[0], hidden[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(trace.entering[1:], trace.residual[:-1])
    for layer in range(LAYERS - 1):
        np.testing.assert_allclose(trace.residual[layer], hidden[layer + 1][0], rtol=1e-4, atol=1e-4)
    normed = model.model.norm(torch.tensor(trace.residual[-1]))
    np.testing.assert_allclose(normed.detach(), hidden[-1][0], rtol=1e-4, atol=1e-5)
    assert trace.layers == tuple(range(LAYERS))


def test_trace_of_a_down_projection_is_its_input_and_output(planted):
    model, analyzed = planted
    ids = analyzed.tokens.ids(PROMPT)
    seen = {}
    handles = [
        block.mlp.down_proj.register_forward_hook(
            lambda _m, args, out, layer=layer: seen.__setitem__(layer, (args[0][0], out[0]))
        )
        for layer, block in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    trace = analyzed.trace(ids)
    for layer in range(LAYERS):
        (entry,) = trace.entries[layer]
        assert (entry.expert, entry.positions.tolist()) == (None, list(range(len(ids))))
        np.testing.assert_allclose(entry.inputs, seen[layer][0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trace.outputs[layer][0], seen[layer][1], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(entry.routed, 1)


def test_what_is_recorded_is_what_the_model_goes_on_with(planted):
    _, analyzed = planted
    ids = analyzed.tokens.ids(PROMPT)
    trace = analyzed.trace(ids, [PLANTED])
    (stream,) = analyzed.streams([ids], [[PLANTED]])
    np.testing.assert_array_equal(trace.residual, stream)
    before, after = (analyzed.trace(ids, zeroed).outputs[LAYER][0, 0, ROW] for zeroed in ((), [PLANTED]))
    assert before > 100 * abs(after)


def test_a_falcons_output_is_without_its_attention(tmp_path):
    """Its block adds the attention to the MLP's output in place, after the hook."""
    plain = load_plain("falcon_old", save_random("falcon_old", tmp_path))
    seen = {}
    for layer, block in enumerate(plain.blocks):
        block.mlp.register_forward_hook(lambda _m, _a, out, layer=layer: seen.__setitem__(layer, out[0].clone()))
    ids = [1, 2, 3, 4]
    expected = streams(plain.model, plain.blocks, ids)
    trace = hooked(tmp_path).trace(ids)
    for layer, stream in enumerate(expected):
        np.testing.assert_allclose(trace.outputs[layer][0], seen[layer].detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trace.residual[layer], stream[0], rtol=1e-4, atol=1e-5)


def test_a_pass_ends_where_it_is_enough(planted):
    _, analyzed = planted
    ids = analyzed.tokens.ids(PROMPT)
    whole = analyzed.trace(ids)
    asked = []

    def enough(layers, residual):
        asked.append((layers, residual.shape))
        return len(layers) == 3

    part = analyzed.trace(ids, enough=enough)
    width = whole.residual.shape[-1]
    assert asked == [(tuple(range(n)), (n, len(ids), width)) for n in (1, 2, 3)]
    assert part.layers == (0, 1, 2)
    assert set(part.entries) == set(part.outputs) == {0, 1, 2}
    np.testing.assert_array_equal(part.residual, whole.residual[:3])
    stopped = analyzed.streams([ids], [()], last_layer=1)
    np.testing.assert_array_equal(stopped[0], whole.residual[:2])


def test_weights_are_read_as_they_are(planted):
    model, analyzed = planted
    down = model.model.layers[2].mlp.down_proj.weight.detach()
    np.testing.assert_array_equal(analyzed.weight_row(Coordinate(2, None, 7, 0).place, 7), down[7])
    assert analyzed.weight_row(PLANTED.place, ROW)[COL] == VALUE


def test_overflow_in_float16_is_reported(tmp_path):
    analyzed = hooked(save(plant(random_llama(), value=3000.0), tmp_path), dtype="float16")
    with pytest.raises(ForwardError, match="not finite in float16: run in float32"):
        analyzed.trace(analyzed.tokens.ids(PROMPT))


def test_weights_that_are_not_finite_are_reported(tmp_path):
    model = random_llama()
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    analyzed = hooked(save(model, tmp_path))
    with pytest.raises(ForwardError, match="not finite in float32: its weights hold NaN or Inf"):
        analyzed.trace(analyzed.tokens.ids(PROMPT))


@pytest.mark.parametrize(
    ("name", "causal"),
    [("llama", True), ("gpt2", True), ("bloom", True), ("gpt_oss", True), ("bert", False), ("modernbert", False)],
)
def test_a_bidirectional_model_is_told_from_a_causal_one(tmp_path, name, causal):
    analyzed = hooked(save_random(name, tmp_path))
    ids = analyzed.tokens.ids(PROMPT)
    assert analyzed.is_causal(ids, analyzed.trace(ids)) == causal
    stopped = analyzed.trace(ids, enough=lambda layers, _: len(layers) == 1)
    assert analyzed.is_causal(ids, stopped) == causal
    assert analyzed.masked != causal


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(planted, tmp_path):
    model, analyzed = planted
    on_gpu = hooked(save(model, tmp_path), device="cuda", dtype="float32", keep_bytes=0)
    ids = analyzed.tokens.ids(PROMPT)
    sets = [(), (PLANTED,)]
    expected = analyzed.streams([ids] * 2, sets)
    np.testing.assert_allclose(on_gpu.streams([ids] * 2, sets), expected, rtol=1e-2, atol=1e-2)
    assert on_gpu.losses([ids], sets) == pytest.approx(analyzed.losses([ids], sets), rel=1e-3)


def test_a_model_has_positions_for_so_many_tokens(tmp_path):
    assert hooked(save_random("mpt", tmp_path / "mpt", max_seq_len=40)).runner.max_tokens == 40
    assert hooked(save_random("llama", tmp_path / "llama", max_position_embeddings=50)).runner.max_tokens == 50
