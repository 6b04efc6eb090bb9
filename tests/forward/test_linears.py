"""The inputs of linear maps, changed and summed up, against hooks of the test's own on plain transformers."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from editing import edited, plain_stream
from models import DENSE, MASKED, PROMPT_IDS, hooked, save_random
from transformers.pytorch_utils import Conv1D

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, InputEdit, Intervention, WeightEdit, changing_inputs
from analyzer.forward.linears import InputStatistics

OTHER_IDS = [9, 3, 16, 1, 2, 9, 12, 4]
WEIGHT = Coordinate(1, None, 5, 19)


def coarse(name, entered):
    """Round to halves, but what goes down another way: it tells whether names are right."""
    step = 0.25 if name.endswith(("down_proj", "c_proj", "fc2")) else 0.5
    return (entered / step).round() * step


def halved(_name, entered):
    return entered / 2


def plain_linears(plain):
    prefix = next(name for name, module in plain.model.named_modules() if module is plain.blocks)
    inside = plain.model.named_modules()
    return {n: m for n, m in inside if n.startswith(f"{prefix}.") and isinstance(m, torch.nn.Linear | Conv1D)}


def changed(plain, change, compute):
    """Compute something while plain linear maps see their changed inputs."""
    with ExitStack() as stack:
        for name, module in plain_linears(plain).items():

            def hook(_module, args, name=name):
                return torch.stack([change(name, row) for row in args[0].reshape(1, -1, args[0].shape[-1])]).reshape(
                    args[0].shape
                )

            stack.callback(module.register_forward_pre_hook(hook).remove)
        return compute()


@pytest.mark.parametrize("name", [*DENSE, "mixtral", "qwen2_moe"])
def test_rows_see_each_its_own_inputs(pair, name):
    plain, model = pair(name)
    layers = model.layers
    whole = [UNTOUCHED, changing_inputs(layers, coarse), changing_inputs(layers, halved)]
    found = model.runner.streams([PROMPT_IDS] * 3, whole)
    expected = [plain_stream(plain, PROMPT_IDS)]
    expected += [changed(plain, each, lambda: plain_stream(plain, PROMPT_IDS)) for each in (coarse, halved)]
    for stream, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(stream, other, rtol=0, atol=2e-4 * np.abs(other).max())
    assert np.abs(expected[1] - expected[0]).max() > 1e-3 * np.abs(expected[0]).max()
    untouched = next(iter(model.runner.streams([PROMPT_IDS], [UNTOUCHED])))  # nothing is left behind
    np.testing.assert_allclose(untouched, expected[0], rtol=0, atol=2e-4 * np.abs(untouched).max())


def test_a_weights_edit_works_on_the_changed_input(pair):
    plain, model = pair("llama")
    both = Intervention((WeightEdit(WEIGHT), *changing_inputs(model.layers, coarse).edits))
    (stream,) = model.runner.streams([PROMPT_IDS], [both])
    expected = edited(plain, [WEIGHT], lambda: changed(plain, coarse, lambda: plain_stream(plain, PROMPT_IDS)))
    np.testing.assert_allclose(stream, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_only_the_layers_that_are_named(pair):
    plain, model = pair("llama")
    (stream,) = model.runner.streams([PROMPT_IDS], [Intervention((InputEdit(1, halved),))])
    before = plain_stream(plain, PROMPT_IDS)
    np.testing.assert_allclose(stream[0], before[0], rtol=0, atol=1e-5 * np.abs(before).max())
    inside = plain_linears(plain)
    one = {name for name in inside if ".1." in name}
    expected = changed(plain, lambda n, x: x / 2 if n in one else x, lambda: plain_stream(plain, PROMPT_IDS))
    np.testing.assert_allclose(stream, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_an_intervention_changes_a_layers_inputs_but_once():
    with pytest.raises(ForwardError, match="twice"):
        Intervention((InputEdit(1, halved), InputEdit(1, coarse)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", *MASKED])
def test_statistics_are_those_of_the_inputs(pair, name):
    plain, model = pair(name)
    statistics = InputStatistics()
    prompts = [PROMPT_IDS[:8], OTHER_IDS]
    before = model.runner.states(prompts, [UNTOUCHED] * 2)
    watched = model.runner.states(prompts, [changing_inputs(model.layers, statistics)] * 2)
    assert torch.equal(before, watched)
    seen = {}

    def keep(name, entered):
        seen.setdefault(name, []).append(entered)
        return entered

    for ids in prompts:
        changed(plain, keep, lambda ids=ids: plain_stream(plain, ids))
    assert statistics.tokens == dict.fromkeys(seen, 16)
    for each, inputs in seen.items():
        whole = torch.cat(inputs).double()
        np.testing.assert_allclose(statistics.largest[each], whole.abs().amax(dim=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(statistics.squares[each], whole.square().sum(dim=0), rtol=1e-4, atol=1e-6)


def test_a_block_of_several_layers_is_changed_alike_in_all(tmp_path):
    from tiny_text import WORDS, save_tokenizer
    from transformers import AlbertConfig, AlbertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "embedding_size": 8, "intermediate_size": 24, "num_attention_heads": 4}
    config = AlbertConfig(vocab_size=len(WORDS) + 3, num_hidden_layers=3, max_position_embeddings=32, **sizes)
    AlbertForMaskedLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = hooked(tmp_path)
    statistics = InputStatistics()
    model.runner.states([PROMPT_IDS], [changing_inputs(model.layers, statistics)])
    assert set(statistics.tokens.values()) == {3 * len(PROMPT_IDS)}
    with pytest.raises(ForwardError, match="runs for several layers"):
        model.runner.states([PROMPT_IDS], [changing_inputs(model.layers[:1], statistics)])


def test_tokens_may_come_before_rows(tmp_path):
    model = hooked(save_random("llama", tmp_path))
    rows = [[PROMPT_IDS[:8], OTHER_IDS], [changing_inputs(model.layers, coarse), UNTOUCHED]]
    expected = model.runner.states(*rows)
    module = model.runner.blocks.model.model.layers[1].mlp
    forward = module.forward
    module.forward = lambda hidden: forward(hidden.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(model.runner.states(*rows), expected)


def test_what_is_no_row_of_tokens_is_refused(tmp_path):
    model = hooked(save_random("llama", tmp_path))
    module = model.runner.blocks.model.model.layers[1].mlp
    forward = module.forward
    module.forward = lambda hidden: forward(hidden.reshape(1, 16, 16)).reshape(hidden.shape)
    with pytest.raises(ForwardError, match=r"gate_proj takes \[1, 16, 16\] for 2 x 8 tokens, which is not followed"):
        model.runner.states([PROMPT_IDS[:8], OTHER_IDS], [changing_inputs(model.layers, halved)] * 2)
