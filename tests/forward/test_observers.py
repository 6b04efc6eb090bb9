"""Observers against transformers' own hidden states and attentions, with rows that are alike and in parts."""

import numpy as np
import pytest
import torch
from editing import edited, plain_stream
from models import DENSE, MASKED, PROMPT_IDS

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, Intervention, StreamEdit, WeightEdit
from analyzer.forward.observers import observed

EDIT = WeightEdit(Coordinate(2, None, 5, 19))
SET = StreamEdit(1, frozenset({(0, 7, 30.0), (2, 8, -20.0)}))


# Falcon's class forgets the mask where it is asked for attentions.
def plain_attentions(plain, ids):
    plain.model.set_attn_implementation("eager")
    with torch.no_grad():
        return plain.model(input_ids=torch.tensor([ids]), output_attentions=True).attentions


def set_entries(edit):
    def hook(_module, _args, output):
        stream = output if isinstance(output, torch.Tensor) else output[0]
        for position, channel, value in edit.values:
            stream[0, position, channel] = value

    return hook


@pytest.mark.parametrize("row_bytes", [1, 1 << 27])
@pytest.mark.parametrize("name", [name for name in DENSE if name not in MASKED and "falcon" not in name])
def test_each_row_has_its_attention(pair, monkeypatch, name, row_bytes):
    plain, model = pair(name)
    monkeypatch.setattr(model.runner.blocks.rows, "row_bytes", row_bytes)
    other = PROMPT_IDS[::-1]
    rows = [(PROMPT_IDS, UNTOUCHED), (PROMPT_IDS, Intervention((EDIT,))), (other, UNTOUCHED), (PROMPT_IDS, UNTOUCHED)]
    found = {}

    def attention(layer, groups, probabilities):
        for group, each in zip(groups, probabilities, strict=True):
            found.update({(layer, row): each.numpy() for row in group})

    with observed(model.runner, attention=attention):
        model.runner.states([ids for ids, _ in rows], [edits for _, edits in rows])
    assert sorted(found) == [(layer, row) for layer in model.runner.layers for row in range(4)]
    for number, (ids, edits) in enumerate(rows):
        weights = [edit.coordinate for edit in edits.edits]
        expected = edited(plain, weights, lambda ids=ids: plain_attentions(plain, ids))
        for layer, each in enumerate(expected):
            np.testing.assert_allclose(found[layer, number], each[0], atol=1e-4)


@pytest.mark.parametrize("row_bytes", [1, 1 << 27])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_new", "qwen2_moe", "bert"])
def test_an_edit_of_the_stream_is_what_the_model_goes_on_with(pair, monkeypatch, name, row_bytes):
    plain, model = pair(name)
    monkeypatch.setattr(model.runner.blocks.rows, "row_bytes", row_bytes)
    sets = [(), (SET,), (SET, EDIT), (EDIT,), (StreamEdit(0, SET.values), SET)]
    found = {}
    with observed(model.runner, stream=lambda layer, stream: found.update({layer: stream.clone().numpy()})):
        model.runner.states([PROMPT_IDS] * len(sets), list(map(Intervention, sets)))
    kept = list(model.runner.streams([PROMPT_IDS] * len(sets), list(map(Intervention, sets))))
    for row, edits in enumerate(sets):
        hooks = [plain.blocks[edit.layer].register_forward_hook(set_entries(edit)) for edit in edits if edit != EDIT]
        weights = [edit.coordinate for edit in edits if edit == EDIT]
        expected = edited(plain, weights, lambda: plain_stream(plain, PROMPT_IDS))
        for hook in hooks:
            hook.remove()
        seen = np.stack([found[layer][row] for layer in model.runner.layers])
        for stream in (seen, kept[row]):
            np.testing.assert_allclose(stream, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert found[1][1, 0, 7] == 30
    assert found[1][0, 0, 7] != 30


def test_what_is_no_entry_of_the_stream_is_refused(pair):
    _, model = pair("llama")
    for value in ((-1, 0, 1.0), (0, 1.5, 1.0), (0, 0, float("nan"))):
        with pytest.raises(ForwardError, match="is no position, channel and value"):
            StreamEdit(0, frozenset({value}))
    with pytest.raises(ForwardError, match="after block 0 is set twice"):
        StreamEdit(0, frozenset({(0, 0, 1.0), (0, 0, 2.0)}))
    for edit, said in ((StreamEdit(99, SET.values), "no block 99"), (StreamEdit(0, frozenset({(999, 0, 0.0)})), "999")):
        with pytest.raises(ForwardError, match=said):
            model.runner.states([PROMPT_IDS], [Intervention((edit,))])
    with pytest.raises(ForwardError, match="the stream after block 1 twice"):
        Intervention((SET, StreamEdit(1, frozenset())))
