"""The hooked model against plain transformers: the same figures by other means."""

import math

import numpy as np
import pytest
import torch
from models import COL, HIDDEN, LAYER, LAYERS, PROMPT, ROW, TEXT, VALUE, WORDS, plant, random_gpt2, random_llama, save

from analyzer.errors import ForwardError
from analyzer.forward import HookedModel
from analyzer.records import Coordinate

PLANTED = Coordinate(LAYER, None, ROW, COL)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    model = plant(random_llama())
    return model, HookedModel(save(model, tmp_path_factory.mktemp("models") / "planted"), name="planted")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    model = random_gpt2()
    return model, HookedModel(save(model, tmp_path_factory.mktemp("models") / "gpt2"), name="gpt2")


def edited_logits(model, module, index, ids):
    """Run the model with one weight set to zero in place, and put it back."""
    with torch.no_grad():
        kept = module.weight[index].item()
        module.weight[index] = 0
        logits = model(torch.tensor([ids])).logits[0]
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        module.weight[index] = kept
    return logits, hidden


def test_trace_is_what_transformers_computes(planted):
    model, hooked = planted
    ids = hooked.tokenize(PROMPT)
    trace = hooked.trace(ids)
    with torch.no_grad():
        # The library's own record: its last entry has been through the final norm, the others are the stream.
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(trace.entering, hidden[0][0], rtol=1e-5, atol=1e-6)
    for layer in range(LAYERS - 1):
        np.testing.assert_allclose(trace.residual[layer], hidden[layer + 1][0], rtol=1e-4, atol=1e-4)
    normed = model.model.norm(torch.tensor(trace.residual[-1]))
    np.testing.assert_allclose(normed.detach(), hidden[-1][0], rtol=1e-4, atol=1e-5)


def test_trace_of_a_down_projection_is_its_input_and_output(planted):
    model, hooked = planted
    trace = hooked.trace(hooked.tokenize(PROMPT))
    for layer in range(LAYERS):
        weight = model.model.layers[layer].mlp.down_proj.weight.detach()
        np.testing.assert_allclose(trace.inputs[layer] @ weight.numpy().T, trace.outputs[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coordinate", [PLANTED, Coordinate(0, None, 3, 5), Coordinate(5, None, 127, 191)])
def test_subtraction_equals_editing_the_weight(planted, coordinate):
    model, hooked = planted
    ids = hooked.tokenize(PROMPT)
    module = model.model.layers[coordinate.layer].mlp.down_proj
    logits, hidden = edited_logits(model, module, (coordinate.row, coordinate.col), ids)
    streams = hooked.residuals(ids, [(), (coordinate,)])
    scale = np.abs(streams[0]).max()
    for layer in range(LAYERS - 1):
        np.testing.assert_allclose(streams[1][layer], hidden[layer + 1][0], atol=1e-4 * scale, rtol=1e-4)
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids)[1:]).item()
    assert hooked.losses([ids], [(coordinate,)])[0] == pytest.approx(loss, abs=1e-4)


def test_subtraction_equals_editing_in_a_conv1d(gpt2):
    model, hooked = gpt2
    ids = hooked.tokenize(PROMPT)
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight[50, 20] = 3.0  # [in, out]: col 50, row 20
        hooked._model.transformer.h[2].mlp.c_proj.weight[50, 20] = 3.0
    coordinate = Coordinate(2, None, 20, 50)
    assert hooked.weight_row(2, 20)[50] == 3.0
    assert hooked.down_shape(2) == (HIDDEN, 192)
    logits, hidden = edited_logits(model, model.transformer.h[2].mlp.c_proj, (50, 20), ids)
    (stream,) = hooked.residuals(ids, [(coordinate,)])
    np.testing.assert_allclose(stream[2], hidden[3][0], atol=1e-4)
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids)[1:]).item()
    assert hooked.losses([ids], [(coordinate,)])[0] == pytest.approx(loss, abs=1e-4)


def test_interventions_in_one_batch_do_not_touch_each_other(planted):
    _, hooked = planted
    ids = hooked.tokenize(PROMPT)
    sets = [(), (PLANTED,), (Coordinate(3, None, 4, 5),), (PLANTED, Coordinate(3, None, 4, 5))]
    together = hooked.residuals(ids, sets)
    for row, zeroed in zip(together, sets, strict=True):
        np.testing.assert_allclose(row, hooked.residuals(ids, [zeroed])[0], rtol=1e-4, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 50
    np.testing.assert_allclose(together[0], hooked.trace(ids).residual, rtol=1e-5, atol=1e-5)


def test_nothing_stays_behind(planted):
    _, hooked = planted
    ids = hooked.tokenize(PROMPT)
    before = hooked.trace(ids).residual
    hooked.residuals(ids, [(PLANTED,)])
    hooked.losses([ids], [(PLANTED,)])
    with pytest.raises(IndexError):
        hooked.residuals(ids, [(Coordinate(0, None, 10**6, 0),)])
    np.testing.assert_array_equal(hooked.trace(ids).residual, before)
    assert hooked.weight_row(LAYER, ROW)[COL] == VALUE
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hooked._model.modules())


def test_losses_over_windows_are_a_mean_over_tokens(planted):
    model, hooked = planted
    first, second = list(range(1, 12)), [3, 1, 2]
    with torch.no_grad():
        sums = [
            torch.nn.functional.cross_entropy(
                model(torch.tensor([w])).logits[0, :-1], torch.tensor(w[1:]), reduction="sum"
            )
            for w in (first, second)
        ]
    assert hooked.losses([first, second], [()])[0] == pytest.approx(sum(sums).item() / 12, rel=1e-5)


def test_small_batches_give_the_same_losses(planted, monkeypatch):
    _, hooked = planted
    windows, sets = hooked.windows(TEXT), [(), (PLANTED,), (Coordinate(3, None, 4, 5),)]
    at_once = hooked.losses(windows, sets)
    monkeypatch.setattr("analyzer.forward.CPU_LOGIT_BYTES", 1)
    assert hooked.losses(windows, sets) == pytest.approx(at_once, rel=1e-6)


def test_windows_fit_the_model_and_cover_the_text(planted):
    _, hooked = planted
    windows = hooked.windows(TEXT + " apple banana")
    assert [len(window) for window in windows] == [64, 2]
    assert windows[0] == [WORDS.index(word) + 1 for word in TEXT.split()]


def test_a_text_of_one_token_has_no_loss(planted):
    with pytest.raises(ForwardError, match="fewer than two tokens"):
        planted[1].windows("apple")


def test_missing_weights_are_refused_not_made_up(tmp_path):
    model = random_llama()
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.3.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ForwardError, match=r"lacks model\.layers\.3\.mlp\.up_proj\.weight"):
        HookedModel(tmp_path, name="holey")


def test_a_model_without_tokenizer_says_so(tmp_path):
    random_llama().save_pretrained(tmp_path)
    with pytest.raises(ForwardError, match="has no tokenizer"):
        HookedModel(tmp_path, name="mute").tokenize(PROMPT)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    hooked = HookedModel(save(random_llama(vocab_size=4), tmp_path), name="small")
    with pytest.raises(ForwardError, match=r"ids up to 8, its embedding has 4 rows"):
        hooked.tokenize(PROMPT)


def test_an_unknown_device_is_one_line(planted, tmp_path):
    with pytest.raises(ForwardError, match="there is no device cuda:99 here"):
        HookedModel(tmp_path, name="x", device="cuda:99")


def test_code_in_a_repository_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "model_code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "model_code.C", "AutoModelForCausalLM": "model_code.M"}}'
    )
    with pytest.raises(ForwardError, match="cannot load the model evil"):
        HookedModel(tmp_path, name="evil")
    assert not marker.exists()


def test_a_mixture_of_experts_says_what_works(tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 17}
    config = transformers.MixtralConfig(num_attention_heads=2, num_key_value_heads=2, num_local_experts=2, **sizes)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ForwardError, match="can be scanned, but not yet verified"):
        HookedModel(tmp_path, name="moe")


def test_overflow_in_float16_is_reported(tmp_path):
    hooked = HookedModel(save(plant(random_llama(), value=3000.0), tmp_path), name="hot", dtype="float16")
    with pytest.raises(ForwardError, match="not finite in float16: run with --dtype float32"):
        hooked.trace(hooked.tokenize(PROMPT))


def test_weights_that_are_not_finite_are_reported(tmp_path):
    model = random_llama()
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    hooked = HookedModel(save(model, tmp_path), name="sick")
    with pytest.raises(ForwardError, match="not finite in float32: its weights hold NaN or Inf"):
        hooked.trace(hooked.tokenize(PROMPT))


def test_a_bidirectional_model_is_told_from_a_causal_one(planted, tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=17, **sizes))
    encoder = HookedModel(save(model, tmp_path), name="encoder")
    ids = encoder.tokenize(PROMPT)
    assert not encoder.is_causal(ids, encoder.trace(ids))
    assert planted[1].is_causal(ids, planted[1].trace(ids))


def test_half_precision_zeroing_is_close_to_editing(tmp_path):
    model = plant(random_llama()).to(torch.bfloat16)
    hooked = HookedModel(save(model, tmp_path), name="half", dtype="bfloat16")
    ids = hooked.tokenize(PROMPT)
    _, hidden = edited_logits(model, model.model.layers[LAYER].mlp.down_proj, (ROW, COL), ids)
    (stream,) = hooked.residuals(ids, [(PLANTED,)])
    # The output was rounded with the product in it: bfloat16 keeps 8 bits of that.
    left = abs(float(hooked.trace(ids).outputs[LAYER][0, ROW])) * 2**-8
    assert math.isclose(stream[LAYER, 0, ROW], float(hidden[LAYER + 1][0, 0, ROW]), abs_tol=left)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu(planted, tmp_path):
    model, hooked = planted
    folder = save(model, tmp_path)
    on_gpu = HookedModel(folder, name="gpu", device="cuda", dtype="float32")
    ids = hooked.tokenize(PROMPT)
    sets = [(), (PLANTED,)]
    np.testing.assert_allclose(on_gpu.residuals(ids, sets), hooked.residuals(ids, sets), rtol=1e-2, atol=1e-2)
    assert on_gpu.losses([ids], sets) == pytest.approx(hooked.losses([ids], sets), rel=1e-3)
