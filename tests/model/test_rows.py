"""Blocks on few rows of a batch at a time, and rows that become alike again."""

from types import SimpleNamespace

import pytest
import torch
from models import (
    PROMPT_IDS,
    hooked,
    load_plain,
    random_llama,
    save,
    save_random,
)
from streamed import assert_close

from analyzer.base.records import Coordinate
from analyzer.forward.edits import zeroing
from analyzer.forward.losses.plain import likelihoods, states_of
from analyzer.model.rows import Untouched, _are_equal


# Each batch of rows, T long, in a model of 4 heads: of the shapes that a tensor's first axis could be mistaken for.
@pytest.mark.parametrize("shape", [(2, 7), (3, 5), (4, 6), (5, 5), (4, 4), (8, 8)], ids=str)
@pytest.mark.parametrize("name", ["llama", "gptj", "bloom", "mpt", "falcon_alibi", "gemma3_text", "modernbert", "opt"])
def test_blocks_on_few_rows_at_a_time(tmp_path, name, shape):
    config = {"alibi": True} if name == "falcon_alibi" else {}
    name = "falcon_old" if config else name
    save_random(name, tmp_path, **config)
    ids = torch.randint(1, 17, shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = load_plain(name, tmp_path).body(input_ids=ids)[0]
    model = hooked(tmp_path)
    for rows in (1, 2, 3):
        model.blocks.rows.row_bytes = rows * model.blocks.rows.bytes_of_one(expected)
        with torch.inference_mode():
            assert_close(model.blocks.body(ids), expected)


def rows_run(model, windows, sets):
    """Return the losses, and how many rows each block ran."""
    counts = dict.fromkeys(model.layers, 0)

    def counter(layer):
        def count(_module, args):
            counts[layer] += args[0].shape[0]

        return count

    handles = [block.mlps[0].whole.register_forward_pre_hook(counter(layer)) for layer, block in enumerate(model.stack)]
    try:
        return model.losses(windows, sets), list(counts.values())
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A model of six blocks, in the second of which the input of column 4 of the down projection is zero."""
    model = random_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[4] = 0
    return save(model, tmp_path_factory.mktemp("models") / "silent")


SILENT, OTHER, HEARD = Coordinate(1, None, 9, 4), Coordinate(1, None, 3, 4), Coordinate(1, None, 9, 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_are_alike_again_are_merged(silent, dtype):
    """Only the block that multiplies an input of zero runs them; what does change something goes on by itself."""
    model = hooked(silent, dtype=dtype)
    sets = [(), (SILENT,), (OTHER,), (HEARD,), (SILENT, OTHER)]
    found, counts = rows_run(model, [PROMPT_IDS], sets)
    assert counts == [1, 5, 2, 2, 2, 2]
    assert found[0] == found[1] == found[2] == found[4] != found[3]
    assert rows_run(model, [PROMPT_IDS], [()])[0] == pytest.approx(found[:1], rel=1e-6)
    assert rows_run(model, [PROMPT_IDS], [(HEARD,)])[0] == pytest.approx(
        found[3:4], rel=1e-6 if dtype == "float32" else 1e-2
    )


def test_a_row_that_is_alike_again_takes_later_edits_by_itself(silent):
    later = Coordinate(3, None, 9, 5)
    found, counts = rows_run(hooked(silent), [PROMPT_IDS], [(), (SILENT, later), (later,)])
    assert counts == [1, 2, 1, 2, 2, 2]
    assert found[1] == found[2] != found[0]


def test_rows_of_other_windows_are_never_merged(silent):
    other = [*PROMPT_IDS[:-1], PROMPT_IDS[0]]
    _, counts = rows_run(hooked(silent), [PROMPT_IDS, other], [(), (SILENT,)])
    assert counts == [2, 4, 2, 2, 2, 2]


def test_what_is_written_into_a_mapping_keeps_rows_apart(silent, monkeypatch):
    """Later blocks may read it, and nothing tells what it is of."""
    model = hooked(silent)
    body = model.blocks.model.model
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda *args, **kwargs: forward(*args, **kwargs, kept_by_blocks={}))
    _, counts = rows_run(model, [PROMPT_IDS], [(), (SILENT,), (SILENT, OTHER)])
    assert counts == [1, 3, 3, 3, 3, 3]


def kept_losses(model, pairs, untouched):
    ((_, states),) = states_of(model.runner, pairs, untouched=untouched)
    return likelihoods(model.runner, [(window, each) for (window, _), each in zip(pairs, states, strict=True)])


def with_kept(model, sets, untouched):
    """Return the losses of a prompt under each set of zeroed weights, and how many rows each block ran."""
    pairs = [(model.tokens.window(PROMPT_IDS), zeroing(each)) for each in sets]

    def run(*_):
        return [float(losses.mean()) for losses in kept_losses(model, pairs, untouched)]

    return rows_run(SimpleNamespace(layers=model.layers, stack=model.stack, losses=run), [], [])


def test_what_is_kept_of_an_untouched_prompt_is_not_run_again(silent):
    model = hooked(silent)
    later = Coordinate(3, None, 9, 5)
    expected = model.losses([PROMPT_IDS], [(), (HEARD,), (later,)])
    untouched = Untouched(1 << 20)
    assert with_kept(model, [()], untouched)[1] == [1] * 6
    found, counts = with_kept(model, [(HEARD,), (later,)], untouched)
    assert counts == [0, 1, 1, 2, 2, 2]
    assert found == pytest.approx(expected[1:], rel=1e-6)
    found, counts = with_kept(model, [(), (HEARD,), (later,)], untouched)
    assert counts == [0, 1, 1, 2, 2, 2]
    assert found == pytest.approx(expected, rel=1e-6)


def test_no_more_is_kept_than_there_is_room_for(silent):
    """Two rows of a block, and not a byte more."""
    model = hooked(silent)
    row = 4 * len(PROMPT_IDS) * model.runner.hidden_size
    untouched = Untouched(2 * row)
    with_kept(model, [()], untouched)
    assert with_kept(model, [()], untouched)[1] == [0, 0, 1, 1, 1, 1]
    untouched = Untouched(2 * row - 1)
    with_kept(model, [()], untouched)
    assert with_kept(model, [()], untouched)[1] == [0, 1, 1, 1, 1, 1]


def test_nothing_is_kept_where_rows_run_one_by_one_or_write_into_a_mapping(silent, monkeypatch):
    model, untouched = hooked(silent), Untouched(1 << 20)
    model.runner.one_by_one = True
    for _ in range(2):
        assert with_kept(model, [()], untouched)[1] == [1] * 6
    model.runner.one_by_one = False
    body = model.blocks.model.model
    forward = body.forward
    monkeypatch.setattr(body, "forward", lambda *args, **kwargs: forward(*args, **kwargs, kept_by_blocks={}))
    for _ in range(2):
        assert with_kept(model, [()], untouched)[1] == [1] * 6


def test_prompts_are_told_apart_by_all_their_tokens(silent):
    model, untouched = hooked(silent), Untouched(1 << 20)
    other = [PROMPT_IDS[0] % 16 + 1, *PROMPT_IDS[1:]]
    windows = [model.tokens.window(ids) for ids in (PROMPT_IDS, other)]
    expected = model.losses([other], [()])
    for window in windows:
        (found,) = kept_losses(model, [(window, zeroing([]))], untouched)
    assert found.mean() == pytest.approx(expected[0], rel=1e-6)


def test_zero_and_minus_zero_are_not_the_same():
    assert torch.equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not _are_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert _are_equal(
        ([torch.tensor([1.0, float("nan")])], {"a": None}), ([torch.tensor([1.0, float("nan")])], {"a": None})
    )
