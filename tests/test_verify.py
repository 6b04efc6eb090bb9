"""The verdict on models whose answer is known: a planted super weight, random weights, and the real sample model."""

import json
from pathlib import Path

import numpy as np
import pytest
from models import COL, LAYER, PROMPT, ROW, TEXT, VALUE, plant, random_llama, save
from sample_model import sample_model_folder

from analyzer.analyze import run_verify
from analyzer.detection import Thresholds
from analyzer.errors import ArchitectureError, ForwardError
from analyzer.forward import HookedModel
from analyzer.records import Coordinate
from analyzer.source import FolderSource
from analyzer.verify import verify

SAMPLE = sample_model_folder()
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason="the sample model is not built: tools/sample_model.py")
PAPER_PROMPT = "Apple Inc. is a worldwide tech company."


def verify_folder(folder, prompt=PROMPT, text=TEXT, **options):
    return run_verify(FolderSource(folder), prompt=prompt, text=text, top=20, **options)[2]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return verify_folder(save(plant(random_llama()), tmp_path_factory.mktemp("planted")))


def test_finds_the_planted_weight(planted):
    assert planted.verdict == "found"
    weight = next(w for w in planted.super_weights if w.coordinate == Coordinate(LAYER, None, ROW, COL))
    assert weight.value == VALUE
    assert weight.static_rank == 1
    assert weight.status == "confirmed"
    assert weight.share == pytest.approx(1, abs=0.02)
    assert weight.activation_collapse > 0.95
    assert weight.loss_tokens == len(TEXT.split()) - 1


def test_reports_the_planted_activation(planted):
    largest = planted.super_activations[0]
    assert (largest.channel, largest.position, largest.layer, largest.token) == (ROW, 0, LAYER, "apple")
    assert largest.last_layer == 5
    row = planted.layers[LAYER]
    assert (row.output_row, row.input_col, row.residual_channel) == (ROW, COL, ROW)


def test_random_weights_have_none(tmp_path):
    result = verify_folder(save(random_llama(seed=3), tmp_path))
    assert result.verdict == "none"
    assert result.super_activations == ()
    assert result.super_weights == ()
    assert len(result.layers) == 6


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
    weight = next(w for w in result.super_weights if w.layer == 3)
    assert (weight.status, weight.effect, weight.static_rank, weight.share) == ("rejected", None, 2, 0)


def test_a_weight_masked_by_another_is_found_in_a_later_round(tmp_path):
    model = plant(random_llama())
    # Both write the same channel from the same token, the second a fifth of what the first does.
    plant(model, value=VALUE / 4, col=COL + 1)
    result = verify_folder(save(model, tmp_path))
    by_col = {w.col: w for w in result.super_weights if w.row == ROW and w.layer == LAYER}
    assert by_col[COL].share == pytest.approx(0.8, abs=0.02)
    assert by_col[COL + 1].status == "confirmed"  # only visible once the first is zeroed: its share was 0.2
    assert by_col[COL + 1].share == pytest.approx(1, abs=0.05)
    assert result.joint is not None
    assert {c.col for c in result.joint.coordinates} >= {COL, COL + 1}


def test_thresholds_are_options(tmp_path):
    folder = save(plant(random_llama()), tmp_path)
    options = {"prompt": PROMPT, "text": TEXT, "outliers": (), "rank": lambda cs: dict.fromkeys(cs, 1)}
    model = HookedModel(folder, name="planted")
    assert verify(model, **options).verdict == "found"
    assert verify(model, **options, thresholds=Thresholds(activation_ratio=1e7)).verdict == "none"


def test_a_prompt_must_have_some_tokens(tmp_path):
    with pytest.raises(ForwardError, match="the prompt has only 2"):
        verify_folder(save(random_llama(), tmp_path), prompt="apple banana")


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


def test_experts_are_refused_also_where_some_layers_are_dense(tmp_path):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    config = transformers.Qwen3MoeConfig(vocab_size=17, mlp_only_layers=[0], head_dim=16, **sizes, **heads)
    save(transformers.Qwen3MoeForCausalLM(config), tmp_path)
    with pytest.raises(ArchitectureError, match="can be scanned, but not yet verified"):
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


@pytest.fixture(scope="module")
def sample():
    from analyzer.analyze import evaluation_text

    # A part of the text keeps this fast; the facts hold on all of it.
    return verify_folder(SAMPLE, prompt=PAPER_PROMPT, text=evaluation_text()[:1000])


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
    weight = next(w for w in sample.super_weights if w.coordinate == Coordinate(28, None, 507, 678))
    assert (weight.value, weight.static_rank, weight.status, weight.effect) == (-5.78125, 3, "coincident", "inert")


@needs_sample
def test_the_sample_models_maxima_agree_with_hooks_of_our_own(sample):
    import torch
    import transformers

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


STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260K"


@pytest.mark.skipif(not STORIES.exists(), reason="the measuring data are not here")
def test_a_real_model_without_super_activation_has_none():
    from analyzer.detection import detect

    model = HookedModel(STORIES, name="stories260K")
    ids = [1, *np.random.default_rng(0).integers(3, 512, 40).tolist()]
    trace = model.trace(ids)
    activations, _ = detect(trace.residual, trace.layers, tuple(map(str, ids)), Thresholds())
    assert activations == ()
