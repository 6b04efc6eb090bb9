"""The hooked model against plain transformers: the same figures by other means."""

import numpy as np
import pytest
import torch
import transformers
from models import (
    COL,
    LAYER,
    LAYERS,
    PROMPT,
    ROW,
    TEXT,
    VALUE,
    WORDS,
    hooked,
    load_plain,
    plant,
    random_llama,
    save,
    save_random,
    save_tokenizer,
    streams,
)

from analyzer.base.errors import AnalyzerError, CheckpointError, ForwardError
from analyzer.base.records import Coordinate

PLANTED = Coordinate(LAYER, None, ROW, COL)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    model = plant(random_llama())
    return model, hooked(save(model, tmp_path_factory.mktemp("models") / "planted"))


def test_trace_is_what_transformers_computes(planted):
    model, analyzed = planted
    ids = analyzed.tokens.ids(PROMPT)
    trace = analyzed.trace(ids)
    with torch.no_grad():
        # The library's own record: its last entry has been through the final norm, the others are the stream.
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(trace.entering, hidden[0][0], rtol=1e-5, atol=1e-6)
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
        np.testing.assert_allclose(trace.outputs[layer], seen[layer][1], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(entry.routed, 1)


def test_what_is_recorded_is_what_the_model_goes_on_with(planted):
    _, analyzed = planted
    ids = analyzed.tokens.ids(PROMPT)
    trace = analyzed.trace(ids, [PLANTED])
    (stream,) = analyzed.streams([ids], [[PLANTED]])
    np.testing.assert_array_equal(trace.residual, stream)
    before, after = (analyzed.trace(ids, zeroed).outputs[LAYER][0, ROW] for zeroed in ((), [PLANTED]))
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
        np.testing.assert_allclose(trace.outputs[layer], seen[layer].detach(), rtol=1e-4, atol=1e-5)
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
    np.testing.assert_array_equal(analyzed.weight_row(2, None, 7), down[7])
    assert analyzed.weight_row(LAYER, None, ROW)[COL] == VALUE


def test_losses_over_windows_are_a_mean_over_tokens(planted):
    model, analyzed = planted
    first, second = list(range(1, 12)), [3, 1, 2]
    with torch.no_grad():
        sums = [
            torch.nn.functional.cross_entropy(
                model(torch.tensor([w])).logits[0, :-1], torch.tensor(w[1:]), reduction="sum"
            )
            for w in (first, second)
        ]
    assert analyzed.losses([first, second], [()])[0] == pytest.approx(sum(sums).item() / 12, rel=1e-5)
    assert analyzed.predicted([first, second]) == 12


@pytest.mark.parametrize("limit", ["PASS_BYTES", "LOGIT_BYTES"])
def test_small_batches_give_the_same_losses(planted, monkeypatch, limit):
    _, analyzed = planted
    windows, sets = [*analyzed.tokens.windows(TEXT), [5, 6, 7]], [(), (PLANTED,), (Coordinate(3, None, 4, 5),)]
    done = []
    at_once = analyzed.losses(windows, sets, done.append)
    assert sum(done) == len(windows) * len(sets)
    monkeypatch.setattr(f"analyzer.forward.losses.{limit}", 1)
    assert analyzed.losses(windows, sets) == pytest.approx(at_once, rel=1e-6)


def test_a_loss_that_is_no_number_is_infinite(tmp_path):
    model = random_llama()
    model.lm_head.weight.data[12] = float("nan")
    assert hooked(save(model, tmp_path)).losses([[1, 2, 3]], [()]) == [float("inf")]


def test_windows_fit_the_model_and_cover_the_text(planted):
    _, analyzed = planted
    windows = analyzed.tokens.windows(TEXT + " apple banana")
    assert [len(window.ids) for window in windows] == [64, 2]
    assert list(windows[0].ids) == [WORDS.index(word) + 1 for word in TEXT.split()]


def test_every_window_begins_as_a_text_does(tmp_path):
    random_llama().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, bos=True)
    windows = hooked(tmp_path).tokens.windows(TEXT + " apple banana")
    assert [len(window.ids) for window in windows] == [64, 4]
    assert [window.ids[0] for window in windows] == [18, 18]
    assert [i for window in windows for i in window.ids[1:]] == [
        WORDS.index(word) + 1 for word in (TEXT + " apple banana").split()
    ]


def test_a_masked_models_loss_is_over_masked_tokens(tmp_path):
    """Every seventh token of each window is masked, and predicted by all that is left."""
    plain = load_plain("modernbert", save_random("modernbert", tmp_path))
    window = [(7 * i) % 16 + 1 for i in range(20)]
    ids = torch.tensor([window])
    ids[0, [3, 10, 17]] = 17
    with torch.no_grad():
        logits = plain.model(input_ids=ids).logits[0, [3, 10, 17]]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(window)[[3, 10, 17]]).item()
    analyzed = hooked(tmp_path)
    assert analyzed.masked
    assert analyzed.predicted([window]) == 3
    assert analyzed.losses([window], [()])[0] == pytest.approx(expected, rel=1e-5)


def test_a_masked_model_without_a_mask_token_says_so(tmp_path):
    save_random("bert", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"mask_token"', '"x_token"'))
    with pytest.raises(ForwardError, match="its tokenizer has no mask token"):
        hooked(tmp_path).losses([list(range(1, 9))], [()])


def test_a_text_of_one_token_has_no_loss(planted):
    with pytest.raises(ForwardError, match="fewer than two tokens"):
        planted[1].tokens.windows("apple")


def test_a_model_without_tokenizer_says_so(tmp_path):
    random_llama().save_pretrained(tmp_path)
    with pytest.raises(ForwardError, match="has no tokenizer"):
        hooked(tmp_path).tokens.ids(PROMPT)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    analyzed = hooked(save(random_llama(vocab_size=4), tmp_path))
    with pytest.raises(ForwardError, match=r"ids up to 8, its embedding has 4 rows"):
        analyzed.tokens.ids(PROMPT)


def test_an_unknown_device_is_one_line(planted, tmp_path):
    save(random_llama(), tmp_path)
    with pytest.raises(ForwardError, match="there is no device cuda:99 here"):
        hooked(tmp_path, device="cuda:99")


def test_code_in_a_repository_is_not_run(tmp_path):
    save(random_llama(), tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "model_code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "model_code.C", "AutoModelForCausalLM": "model_code.M"}}'
    )
    with pytest.raises(ForwardError, match=r"cannot load the model .*it needs code of its own, which is never run"):
        hooked(tmp_path)
    assert not marker.exists()


def test_overflow_in_float16_is_reported(tmp_path):
    analyzed = hooked(save(plant(random_llama(), value=3000.0), tmp_path), dtype="float16")
    with pytest.raises(ForwardError, match="not finite in float16: run with --dtype float32"):
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


def test_a_model_that_cannot_be_built_is_one_line(tmp_path):
    save(random_llama(), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 128, "num_attention_heads": 0}')
    with pytest.raises(AnalyzerError) as caught:
        hooked(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_without_head_is_refused(tmp_path):
    model = transformers.LlamaModel(random_llama().config)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"the checkpoint lacks lm_head\.weight"):
        hooked(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(planted, tmp_path):
    model, analyzed = planted
    on_gpu = hooked(save(model, tmp_path), device="cuda", dtype="float32", keep_bytes=0)
    ids = analyzed.tokens.ids(PROMPT)
    sets = [(), (PLANTED,)]
    expected = analyzed.streams([ids] * 2, sets)
    np.testing.assert_allclose(on_gpu.streams([ids] * 2, sets), expected, rtol=1e-2, atol=1e-2)
    assert on_gpu.losses([ids], sets) == pytest.approx(analyzed.losses([ids], sets), rel=1e-3)
