"""Zeroing by subtraction against editing the weight in plain transformers, and what is seen of every expert."""

import numpy as np
import pytest
import torch
from editing import edited, plain_loss, plain_stream
from models import (
    DENSE,
    MASKED,
    MIXTURES,
    PROMPT_IDS,
    arguments,
    hooked,
    load_plain,
    save_random,
    streams,
)

from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.base.records import Coordinate
from analyzer.forward.blocks.mlps import Block
from analyzer.forward.interception import Watched

OTHER_IDS = [9, 3, 16, 1, 2, 9, 12, 4]
WINDOWS = [PROMPT_IDS, OTHER_IDS, [5, 6, 7, 8, 1]]
# Every down projection of these models has a weight at (5, 19) that matters.
ROW, COL = 5, 19


class Adds(torch.nn.Module):
    def forward(self, hidden):
        return hidden + 1


@pytest.mark.parametrize(("first", "then"), [(0, 1), (1, 0)])
def test_blocks_that_do_not_follow_each_other_are_refused(first, then):
    blocks = [Block(f"blocks.{layer}", Adds(), (layer,)) for layer in range(2)]
    watched, hidden = Watched(1, 3, 4, several=False), torch.arange(12.0).reshape(1, 3, 4)
    for block in blocks:
        list(watched.hung_up(block, lambda _: False, inside=False))
    blocks[first].module(hidden)
    with pytest.raises(ForwardError, match="runs beside another block, or before, not after it"):
        blocks[then].module(hidden)


def fired(plain, layer, ids):
    """Return the experts that a token is sent to, [(token, expert)], by the plain model's own router."""
    experts = next(module for module in plain.blocks[layer].modules() if hasattr(module, "gate_up_proj"))
    hidden, *routing = arguments(plain.model, experts, ids)
    if routing:
        return [(token, int(expert)) for token, chosen in enumerate(routing[0]) for expert in chosen]
    hidden = hidden.reshape(len(experts.gate_up_proj), len(ids), -1)  # each expert's own copy of the tokens, scaled
    return [(int(token), int(expert)) for expert, token in hidden.abs().sum(dim=-1).nonzero()]


def check_zeroing(plain, model, coordinate):
    """Compare the residual streams and the losses, and return how much the loss changes."""
    before = plain_stream(plain, PROMPT_IDS)
    after = edited(plain, [coordinate], lambda: plain_stream(plain, PROMPT_IDS))
    scale = np.abs(before).max()
    assert np.abs(after - before).max() > 1e-2 * scale
    untouched, zeroed = model.streams([PROMPT_IDS] * 2, [(), (coordinate,)])
    np.testing.assert_allclose(untouched, before, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(zeroed, after, rtol=0, atol=1e-4 * scale)
    if plain.name in MASKED:
        return 0.0
    loss = edited(plain, [coordinate], lambda: plain_loss(plain, PROMPT_IDS))
    assert model.losses([PROMPT_IDS], [(coordinate,)])[0] == pytest.approx(loss, abs=1e-4)
    return abs(loss - plain_loss(plain, PROMPT_IDS))


@pytest.mark.parametrize("name", DENSE)
def test_subtraction_equals_editing_the_weight(pair, name):
    change = check_zeroing(*pair(name), Coordinate(1, None, ROW, COL))
    assert name in MASKED or change > 1e-3


@pytest.mark.parametrize("name", MIXTURES)
def test_subtraction_equals_editing_an_experts_weight(pair, name):
    plain, model = pair(name)
    layer = min(layer for layer, expert in plain.downs if expert is not None)
    experts = sorted({expert for _, expert in fired(plain, layer, PROMPT_IDS)})
    assert len(experts) > 1
    assert max(check_zeroing(plain, model, Coordinate(layer, expert, ROW, COL)) for expert in experts) > 1e-3


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "qwen2_moe", "llama4_text"])
def test_subtraction_equals_editing_a_shared_or_dense_weight(pair, name):
    plain, model = pair(name)
    dense = [layer for layer, expert in plain.downs if expert is None]
    shared = [layer for layer in dense if (layer, 0) in plain.downs]
    assert shared
    assert len(dense) > len(shared)
    check_zeroing(plain, model, Coordinate(shared[-1], None, ROW, COL))
    check_zeroing(plain, model, Coordinate(dense[0], None, ROW, COL))


def test_an_expert_that_no_token_is_sent_to_changes_nothing(pair):
    plain, model = pair("mixtral")
    ids = [3, 3, 3]  # all alike, so two experts have them all
    idle = min({0, 1, 2, 3} - {expert for _, expert in fired(plain, 0, ids)})
    untouched, zeroed = model.streams([ids] * 2, [(), (Coordinate(0, idle, ROW, COL),)])
    np.testing.assert_array_equal(untouched[0], zeroed[0])


# What experts make of their input, by the formulas of their papers; the plain module's weights are of one expert.


def inner_of_gated(hidden, gate_up, _bias):
    gate, up = (hidden @ gate_up.T).chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def inner_of_llama4(hidden, gate_up, bias):
    return inner_of_gated(hidden, gate_up.T, bias)


def inner_of_gpt_oss(hidden, gate_up, bias):
    both = hidden @ gate_up + bias
    gate, up = both[:, 0::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


@pytest.mark.parametrize("name", MIXTURES)
def test_which_expert_fired_with_what_input_and_weight(pair, name):
    """Every (token, expert) of a prompt, against what the plain model's router hands to its experts."""
    plain, model = pair(name)
    trace = model.trace(PROMPT_IDS)
    inner = {"gpt_oss": inner_of_gpt_oss, "llama4_text": inner_of_llama4}.get(name, inner_of_gated)
    layers = sorted({layer for layer, expert in plain.downs if expert is not None})
    for layer in layers:
        experts = next(module for module in plain.blocks[layer].modules() if hasattr(module, "gate_up_proj"))
        hidden, *routing = arguments(plain.model, experts, PROMPT_IDS)
        seen = set()
        for entry in trace.entries[layer]:
            if entry.expert is None:
                continue
            bias = experts.gate_up_proj_bias[entry.expert] if name == "gpt_oss" else None
            own = hidden.reshape(-1, len(PROMPT_IDS), hidden.shape[-1])[entry.expert if not routing else 0]
            with torch.no_grad():
                expected = inner(own[torch.tensor(entry.positions)], experts.gate_up_proj[entry.expert], bias)
            np.testing.assert_allclose(entry.inputs, expected, rtol=1e-4, atol=1e-5)
            for position, weight in zip(entry.positions, entry.routed, strict=True):
                if routing:
                    place = routing[0][position].tolist().index(entry.expert)
                    assert weight == pytest.approx(routing[1][position, place].item(), rel=1e-5)
                else:  # its weight is in its input already
                    assert weight == 1
                seen.add((int(position), entry.expert))
        meant = set(fired(plain, layer, PROMPT_IDS))
        assert seen == meant if routing else seen > meant
        assert len({expert for _, expert in meant}) > 1


def test_the_weights_of_mixtrals_router_are_those_of_its_paper(pair):
    """Softmax over the two largest of the router's logits (arXiv 2401.04088), computed by hand."""
    plain, model = pair("mixtral")
    (hidden,) = arguments(plain.model, plain.blocks[1].mlp, PROMPT_IDS)
    with torch.no_grad():
        logits = hidden[0] @ plain.blocks[1].mlp.gate.weight.T
    largest = logits.topk(2)
    expected = {
        (token, expert): weight
        for token, (experts, weights) in enumerate(
            zip(largest.indices.tolist(), largest.values.softmax(dim=-1).tolist(), strict=True)
        )
        for expert, weight in zip(experts, weights, strict=True)
    }
    found = {
        (int(position), entry.expert): float(weight)
        for entry in model.trace(PROMPT_IDS).entries[1]
        for position, weight in zip(entry.positions, entry.routed, strict=True)
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_weight_of_a_shared_expert_is_its_gates(pair):
    plain, model = pair("qwen2_moe")
    (hidden,) = arguments(plain.model, plain.blocks[2].mlp, PROMPT_IDS)
    with torch.no_grad():
        expected = torch.sigmoid(hidden[0] @ plain.blocks[2].mlp.shared_expert_gate.weight.T)[:, 0]
    (shared,) = [entry for entry in model.trace(PROMPT_IDS).entries[2] if entry.expert is None]
    np.testing.assert_allclose(shared.routed, expected, rtol=1e-5)
    assert shared.routed.max() < 0.9


@pytest.mark.parametrize("name", DENSE + MIXTURES)
def test_every_output_is_the_sum_of_its_terms(pair, name):
    """W[row] times what entered, over all experts, and the bias, is what the MLP adds, at every layer and position."""
    plain, model = pair(name)
    trace = model.trace(PROMPT_IDS)
    matrices = {}
    for (layer, expert), down in plain.downs.items():
        rows = [
            model.weight_row(Coordinate(layer, expert, 0, 0).place, row)
            for row in range(plain.downs[layer, expert].shape[0])
        ]
        np.testing.assert_allclose(rows, down.detach(), rtol=1e-6)
        matrices[layer, expert] = np.array(rows)
    for layer, block in enumerate(plain.blocks):
        for position in range(len(PROMPT_IDS)):
            total = np.array(bias_of(plain, block, layer, position, trace), np.float64) + np.zeros(16)
            for place, entered, output in trace.at(layer, position):
                total += matrices[layer, place[3] if place[3] >= 0 else None] @ entered
                expected = output
            np.testing.assert_allclose(expected, total, rtol=0, atol=1e-5 * np.abs(expected).max())


def bias_of(plain, block, layer, position, trace):
    """What the biases of a down projection add; of gpt_oss each expert's own, by its router's weight."""
    if plain.name == "gpt_oss":
        biases = block.mlp.experts.down_proj_bias.detach().double().numpy()
        return sum(
            biases[entry.expert] * entry.routed[entry.positions == position].sum() for entry in trace.entries[layer]
        )
    weight = plain.downs.get((layer, None))
    for module in block.modules():
        own = getattr(module, "weight", None)
        if weight is not None and own is not None and own.data_ptr() == weight.data_ptr():
            return 0 if module.bias is None else module.bias.detach().double().numpy()
    return 0


def test_biases_are_not_all_zero(pair):
    for name in ("gpt2", "opt", "bert", "gpt_oss"):
        plain, model = pair(name)
        assert np.abs(bias_of(plain, plain.blocks[1], 1, 0, model.trace(PROMPT_IDS))).max() > 0.05


SETS = [
    (),
    (Coordinate(0, None, ROW, COL),),
    (Coordinate(2, None, ROW, COL),),
    (Coordinate(0, None, ROW, COL), Coordinate(2, None, ROW, COL)),
    (Coordinate(1, None, ROW, COL),),
    (Coordinate(1, None, 0, 0),),
    (),
]


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "bloom", "mpt", "falcon_new", "gemma3_text", "bert"])
def test_interventions_in_one_batch_do_not_touch_each_other(pair, monkeypatch, name):
    plain, model = pair(name)
    alone = [model.streams([PROMPT_IDS], [zeroed])[0] for zeroed in SETS]
    by_editing = [edited(plain, zeroed, lambda: plain_stream(plain, PROMPT_IDS)) for zeroed in SETS]
    for row_bytes in (1, 1 << 27):
        monkeypatch.setattr(model.blocks.rows, "row_bytes", row_bytes)
        together = model.streams([PROMPT_IDS] * len(SETS), SETS)
        for found, expected, after in zip(together, alone, by_editing, strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
            np.testing.assert_allclose(found, after, rtol=0, atol=1e-4 * scale)
        assert len({stream.tobytes() for stream in together}) > 3  # OPT's ReLU lets nothing through in some places


def test_each_row_runs_its_own_prompt(pair):
    plain, model = pair("llama")
    zeroed = (Coordinate(1, None, ROW, COL),)
    both = model.streams([PROMPT_IDS, OTHER_IDS, OTHER_IDS], [(), (), zeroed])
    expected = [
        plain_stream(plain, PROMPT_IDS),
        plain_stream(plain, OTHER_IDS),
        edited(plain, zeroed, lambda: plain_stream(plain, OTHER_IDS)),
    ]
    np.testing.assert_allclose(both, expected, rtol=0, atol=1e-4)


def expert_sets(plain):
    layers = sorted({layer for layer, expert in plain.downs if expert is not None})
    single = [(Coordinate(layer, expert, ROW, COL),) for layer in layers for expert in range(4)]
    return [(), *single, (*single[0], *single[-1])]


@pytest.mark.parametrize("name", ["llama", "bloom", "mpt", "opt", "bert", *MIXTURES])
def test_rows_that_are_alike_run_once_and_lose_nothing(pair, monkeypatch, name):
    """Losses of many interventions over windows of two lengths, and each alone over each window alone."""
    plain, model = pair(name)
    sets = expert_sets(plain) if name in MIXTURES else SETS
    predicted = [model.predicted([window]) for window in WINDOWS]
    expected = [
        sum(model.losses([window], [zeroed])[0] * n for window, n in zip(WINDOWS, predicted, strict=True))
        / sum(predicted)
        for zeroed in sets
    ]
    for row_bytes in (1, 40_000, 1 << 27):
        monkeypatch.setattr(model.blocks.rows, "row_bytes", row_bytes)
        assert model.losses(WINDOWS, sets) == pytest.approx(expected, rel=1e-5)
    if name not in MASKED:
        by_editing = [
            edited(plain, zeroed, lambda: sum(plain_loss(plain, w) * (len(w) - 1) for w in WINDOWS)) / sum(predicted)
            for zeroed in sets
        ]
        assert expected == pytest.approx(by_editing, abs=1e-4)
    assert len({round(loss, 6) for loss in expected}) > len(sets) // 2


def test_rows_run_apart_only_from_the_block_that_zeroes(pair, monkeypatch):
    _, model = pair("llama")
    monkeypatch.setattr(model.blocks.rows, "row_bytes", 1)  # so that each row in hand is one call
    calls = dict.fromkeys(model.layers, 0)

    def counter(layer):
        def count(*_):
            calls[layer] += 1

        return count

    downs = [block.mlps[0].whole for block in model.stack]
    handles = [down.register_forward_hook(counter(layer)) for layer, down in enumerate(downs)]
    try:
        model.losses([PROMPT_IDS, OTHER_IDS], SETS)
    finally:
        for handle in handles:
            handle.remove()
    # Two windows, and of each first the two kinds that differ in block 0, then those that do in 1, and in 2.
    assert calls == {0: 2 * 2, 1: 2 * 4, 2: 2 * 6}


def attached(model):
    """Everything that hooks and patches leave on modules."""
    return {
        name: (
            tuple(module._forward_hooks),
            tuple(module._forward_pre_hooks),
            {key: value for key, value in vars(module).items() if key == "forward"},
        )
        for name, module in model.blocks.model.named_modules()
    }


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gpt_oss"])
def test_nothing_stays_behind(pair, name):
    plain, model = pair(name)
    sets = expert_sets(plain) if name in MIXTURES else SETS
    before, kind = attached(model), model.blocks.rows.kind
    expected = model.trace(PROMPT_IDS).residual

    class BrokenError(Exception):
        pass

    def fail(*_):
        raise BrokenError

    def failing_trace():
        model.trace(PROMPT_IDS, sets[1], enough=fail)

    def failing_losses():
        model.losses([PROMPT_IDS], sets, fail)

    def failing_module():
        (mlp,) = model.stack[1].mlps
        inside = model.stack[1].module.get_submodule("mlp").modules()
        activation = next(m for m in inside if m not in [writer.module for writer in mlp.writers])
        handle = activation.register_forward_pre_hook(fail)
        try:
            model.losses([PROMPT_IDS], sets)
        finally:
            handle.remove()

    # What a module raises is told as the model's own.
    attempts = ((failing_trace, BrokenError), (failing_losses, BrokenError), (failing_module, ForwardError))
    for attempt, error in attempts:
        with pytest.raises(error):
            attempt()
        assert attached(model) == before
        assert model.blocks.rows.kind is kind
    with pytest.raises(ArchitectureError, match="has no weight"):
        model.streams([PROMPT_IDS], [(Coordinate(0, None, 10**6, 0),)])
    model.streams([PROMPT_IDS] * len(sets), sets, last_layer=1)
    model.losses([PROMPT_IDS], sets)
    assert attached(model) == before
    np.testing.assert_array_equal(model.trace(PROMPT_IDS).residual, expected)


def test_no_weight_is_written(pair):
    _, model = pair("llama")
    model.losses([PROMPT_IDS], SETS)
    kept = {name: value.clone() for name, value in model.blocks.model.named_parameters() if ".layers." in name}
    assert kept
    model.losses([OTHER_IDS], SETS)
    model.trace(PROMPT_IDS, SETS[3])
    now = dict(model.blocks.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in kept.items())


def test_half_precision_zeroing_is_close_to_editing(tmp_path):
    save_random("llama", tmp_path)
    load_plain("llama", tmp_path, dtype=torch.bfloat16).model.save_pretrained(tmp_path)
    plain = load_plain("llama", tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    model = hooked(tmp_path, dtype="bfloat16")
    coordinate = Coordinate(1, None, ROW, COL)
    after = edited(plain, [coordinate], lambda: torch.stack(streams(plain.model, plain.blocks, PROMPT_IDS))[:, 0])
    (stream,) = model.streams([PROMPT_IDS], [(coordinate,)])
    # The output was rounded with the product in it: bfloat16 keeps 8 bits of that.
    left = np.abs(model.trace(PROMPT_IDS).outputs[1][0]).max() * 2**-8
    np.testing.assert_allclose(stream[1], after[1].float(), rtol=2**-8, atol=2 * left)
