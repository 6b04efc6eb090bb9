"""Blocks with several MLPs, MLPs apart from experts, experts below each other, blocks that run many times.

All against plain transformers: the stream, the loss, what zeroing does, what each MLP is the sum of, and who is found.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import PROMPT_IDS, TEXT_IDS, arguments, found_at, save, streams, verify_folder
from shapes import SHAPES, WIDTH, build, coordinate, inside, plant

from analyzer.analyze.running import open_runnable
from analyzer.base.errors import ForwardError
from analyzer.forward.blocks.mlps import find_blocks
from analyzer.forward.edits import UNTOUCHED, scaling, zeroing
from analyzer.forward.losses.plain import losses
from analyzer.model.rows import Untouched
from analyzer.source.folder import FolderSource

LAYER, ROW, COL = 1, 5, 19


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the plain model of a shape, and the analyzer's runner and tokens; a weight matters everywhere."""
    pairs = {}

    def get(name):
        if name not in pairs:
            model = build(name)
            for layer in range(len(model.get_submodule(SHAPES[name].blocks))):
                for inner in inside(name, model, layer).values():
                    inner.down[ROW, COL] = 10.0
            folder = save(model, tmp_path_factory.mktemp("models") / name)
            pairs[name] = model, *open_runnable(FolderSource(folder)).build()
        return pairs[name]

    return get


def plain_stream(name, model, ids=PROMPT_IDS):
    found = torch.stack(streams(model, model.get_submodule(SHAPES[name].blocks), ids))
    if name == "gemma3n_text":  # [streams, rows, T, width] comes out of its blocks
        found = found.reshape(len(found), 4, len(ids), WIDTH).transpose(1, 2).flatten(2)[:, None]
    return found[:, 0].numpy()


def plain_loss(model, window):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([window.ids])).logits[0, list(window.places)]
    return torch.nn.functional.cross_entropy(logits.double(), torch.tensor(window.targets)).item()


def places_of(name):
    layer = first_of(name)
    return [coordinate(name, layer, place, ROW, COL) for place in inside(name, build(name), layer)]


def first_of(name):
    return 0 if name == "albert" else LAYER


@pytest.mark.parametrize("name", SHAPES)
def test_zeroing_each_writer_of_a_block_equals_editing_it(pair, name):
    """All in one batch; of a block that runs many times the weight is zeroed at every use."""
    model, runner, tokens = pair(name)
    window = tokens.window(TEXT_IDS)
    expected, expected_losses = [], []
    places = places_of(name)
    rows = [UNTOUCHED, *(zeroing([c]) for c in places), zeroing(places)]
    found = list(runner.streams([PROMPT_IDS] * len(rows), rows))
    found_losses = losses(runner, [window], rows)
    for row in rows:
        views = [inside(name, model, e.coordinate.layer)[e.coordinate.mlp, e.coordinate.expert].down for e in row.edits]
        for view in views:
            view[ROW, COL] = 0  # a view of the plain model's own weight
        expected.append(plain_stream(name, model))
        expected_losses.append(plain_loss(model, window))
        for view in views:
            view[ROW, COL] = 10.0
    scale = np.abs(expected[0]).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    assert found_losses == pytest.approx(expected_losses, rel=1e-5)
    changed = [np.abs(each - expected[0]).max() > 1e-2 * scale for each in expected[1:]]
    assert sum(changed) > len(changed) / 2  # not every expert has a token


@pytest.mark.parametrize("name", SHAPES)
def test_the_shares_of_all_weights_make_up_what_the_mlps_add(pair, name):
    model, runner, _ = pair(name)
    trace = runner.trace(PROMPT_IDS)
    assert set(trace.outputs) == set(trace.layers) == set(range(5))
    assert {len(outputs) for outputs in trace.outputs.values()} == {MLPS.get(name, 1)}
    for layer in trace.layers:
        for position in range(len(PROMPT_IDS)):
            shares = np.zeros(WIDTH)
            for place, entered, whole in trace.at(layer, position):
                down = inside(name, model, place[1])[tuple(None if n < 0 else n for n in place[2:])].down
                shares += down.double().numpy() @ entered / whole
            added = trace.added[layer][:, position]
            sure = np.abs(added.sum(axis=0)) > 1e-3 * np.abs(added).sum(axis=0)
            bias = BIAS[name](model, layer).detach().numpy() / added[0] if name in BIAS else 0
            np.testing.assert_allclose((shares + bias)[sure], 1, rtol=0, atol=2e-2)
            assert sure.mean() > 0.9


STREAMS = ("deepseek_v4", "hy_v4", "gemma3n_text")
MLPS = {"granitemoehybrid": 2, "gemma4_text": 2, "longcat_flash": 3}
BIAS = {
    "albert": lambda model, _: model.albert.encoder.albert_layer_groups[0].albert_layers[0].ffn_output.bias,
    "jetmoe": lambda model, layer: model.model.layers[layer].mlp.bias,
}


def test_what_two_norms_make_of_two_mlps_is_what_the_next_norm_is_given(pair):
    model, runner, _ = pair("gemma4_text")
    trace = runner.trace(PROMPT_IDS)
    for layer, block in enumerate(model.model.layers):
        (given,) = arguments(model, block.post_feedforward_layernorm, PROMPT_IDS)
        np.testing.assert_allclose(trace.added[layer].sum(axis=0), given[0], rtol=0, atol=1e-4)
        assert np.abs(trace.added[layer] - trace.outputs[layer]).max() > 0.1


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("rows", [2, 4, 5])
def test_rows_of_several_streams_run_a_few_at_a_time(pair, monkeypatch, name, rows):
    """Also as many rows as there are streams."""
    _, runner, _ = pair(name)
    prompts = [[*PROMPT_IDS[number:], *PROMPT_IDS[:number]] for number in range(rows)]
    together = runner.states(prompts, [UNTOUCHED] * rows)
    monkeypatch.setattr(runner.blocks.rows, "row_bytes", 1)
    apart = runner.states(prompts, [UNTOUCHED] * rows)
    alone = torch.cat([runner.states([prompt], [UNTOUCHED]) for prompt in prompts])
    for found in (together, apart):
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5 * alone.abs().max().item())


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_kept_of_untouched_prompts_changes_nothing(pair, name):
    _, runner, _ = pair(name)
    edited = scaling({runner.some_weight(runner.layers[len(runner.layers) // 2]): -50.0})
    prompts, edits = [PROMPT_IDS, PROMPT_IDS, PROMPT_IDS[::-1]], [UNTOUCHED, edited, UNTOUCHED]
    expected = runner.states(prompts, edits)
    untouched = Untouched(1 << 24)
    for _ in range(2):
        found = runner.states(prompts, edits, untouched)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert not runner.one_by_one


def test_weights_that_several_layers_share_are_attributed_at_each_use(pair):
    _, runner, _ = pair("albert")
    trace = runner.trace(PROMPT_IDS)
    used = [next(trace.at(layer, 0)) for layer in trace.layers]
    assert [place[1] for place, _, _ in used] == [0] * 5  # the first layer, as scan has it
    assert len({entered.tobytes() for _, entered, _ in used}) == 5
    assert runner.stack[0].layers == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("name", SHAPES)
def test_a_planted_weight_of_each_writer_is_found(tmp_path, name):
    """Of experts, one that the first token is sent to; a weight that several layers share writes at each of them."""
    layer = first_of(name)
    for place in reached(name):
        model = build(name)
        plant(model, name, layer, place, ROW, COL)
        result = verify_folder(save(model, tmp_path / str(place)))
        weight = found_at(result, coordinate(name, layer, place, ROW, COL))
        assert (weight.status, weight.share > 0.9, weight.round) == ("confirmed", True, 1)
        stream = np.abs(plain_stream(name, model))
        (activation,) = [a for a in result.super_activations if (a.channel, a.position) == (ROW, 0)]
        assert result.streams == (4 if name in STREAMS else None)
        assert any("4 streams of 64 channels" in note for note in result.notes) == (name in STREAMS)
        assert abs(activation.value) == pytest.approx(stream[:, 0, ROW].max(), rel=1e-4)
        assert (activation.layer, activation.last_layer) == (layer, 4)
        writes = [w.layer for w in result.writes if (w.channel, w.position) == (ROW, 0) and 0.9 < w.largest_share < 1.1]
        assert writes == ([0, 1, 2, 3, 4] if name == "albert" else [layer])


def reached(name):
    """Return the linear maps of a block, and of each of its sets of experts the first that has the first token."""
    model = build(name)
    seen, places = set(), []
    for place, inner in inside(name, model, first_of(name)).items():
        hidden, *routing = arguments(model, inner.module, PROMPT_IDS)
        chosen = routing[0][0].tolist() if len(routing) == 2 else [place[1]]
        if name == "jetmoe":  # whose experts are handed nothing but the hidden states
            chosen = inner.module.router.layer(hidden[0, 0]).topk(2).indices.tolist()
        if inner.module not in seen and place[1] in chosen:
            seen.add(inner.module)
            places.append(place)
    return places


def test_a_planted_weight_is_found_where_widths_differ_by_layer(tmp_path):
    """Gemma 4, whose last layers share keys and values and have MLPs twice as wide."""
    sizes = {"num_hidden_layers": 7, "layer_types": ["full_attention"] * 7, "num_kv_shared_layers": 3}
    sizes |= {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 19}
    model = build("gemma4_text", use_double_wide_mlp=True, **sizes)
    widths = [inside("gemma4_text", model, layer)[None, None].down.shape[1] for layer in range(7)]
    assert widths == [96] * 4 + [192] * 3
    plant(model, "gemma4_text", 4, (None, None), ROW, 150)
    folder = save(model, tmp_path)
    weight = found_at(verify_folder(folder), coordinate("gemma4_text", 4, (None, None), ROW, 150))
    assert (weight.status, weight.share > 0.9) == ("confirmed", True)
    runner, _ = open_runnable(FolderSource(folder)).build()
    (found,) = runner.streams([PROMPT_IDS], [zeroing([weight.coordinate])])
    inside("gemma4_text", model, 4)[None, None].down[ROW, 150] = 0
    expected = plain_stream("gemma4_text", model)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_block_that_runs_many_times_is_loaded_again_each_time_where_it_is_dropped(tmp_path):
    model = build("albert")
    folder = save(model, tmp_path)
    runner, _ = open_runnable(FolderSource(folder)).build(keep_bytes=0)
    (found,) = runner.streams([PROMPT_IDS], [UNTOUCHED])
    np.testing.assert_allclose(found, plain_stream("albert", model), rtol=0, atol=1e-5)


def test_blocks_that_differ_and_share_an_mlp_are_refused():
    layers = torch.nn.ModuleList(torch.nn.ModuleDict({"mlp": torch.nn.Linear(4, 3)}) for _ in range(3))
    model = torch.nn.ModuleDict({"layers": layers})
    name = "layers.1.mlp.weight"
    projection = SimpleNamespace(
        name=name, layer=1, layers=(1, 2), expert=None, block="layers.1", place=("", 1, -1, -1), writes=None
    )
    with pytest.raises(ForwardError, match="m shares an MLP among blocks that differ: it can be scanned"):
        find_blocks("m", model, {name: name}, [projection])
