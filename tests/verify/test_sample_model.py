"""The facts of the real sample model, of a shuffled copy, and of a real model without a super activation."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import (
    found_at,
    hooked,
    verify_folder,
)
from safetensors.torch import load_file, save_file
from sample_model import sample_model_folder

from analyzer.base.records import Coordinate
from analyzer.checkpoint.shards import INDEX
from analyzer.verify.activations.detection import detect
from analyzer.verify.settings import Thresholds, evaluation_text

pytestmark = pytest.mark.early

SAMPLE = sample_model_folder()
needs_sample = pytest.mark.skipif(not SAMPLE.exists(), reason="the sample model is not built: tools/sample_model.py")
PAPER_PROMPT = "Apple Inc. is a worldwide tech company."


# The sample model, once a session: a short text keeps it fast.


@pytest.fixture(scope="module")
def sample():
    return verify_folder(SAMPLE, prompt=PAPER_PROMPT, text=evaluation_text()[:450], top=3)


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
    for row, headroom in zip(sample.layers, sample.headroom.layers, strict=True):  # of this prompt alone
        largest = headroom.down_input, headroom.mlp_output, headroom.residual
        assert largest == tuple(map(abs, (row.input_max, row.output_max, row.residual_max)))
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


STORIES = Path(__file__).parents[3] / "shared" / "data" / "stories260K"


@pytest.mark.skipif(not STORIES.exists(), reason="the measuring data are not here")
def test_a_real_model_without_super_activation_has_none():
    model = hooked(STORIES)
    ids = [1, *np.random.default_rng(0).integers(3, 512, 40).tolist()]
    trace = model.trace(ids)
    activations, _ = detect(trace.residual, trace.layers, tuple(map(str, ids)), Thresholds())
    assert activations == ()
