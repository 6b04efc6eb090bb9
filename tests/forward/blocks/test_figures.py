"""What MLPs take and give in a batch of prompts of several lengths, against each prompt in a run of its own."""

import pytest
from models import DENSE, MIXTURES, PROMPT_IDS

from analyzer.forward.blocks.figures import SEEN, MlpFigures
from analyzer.forward.edits import UNTOUCHED

SHORT = PROMPT_IDS[::-1][:5]
MASKED = ("bert", "modernbert")  # what follows a prompt changes it


def figures_of(runner, lengths, run):
    figures = MlpFigures()
    with figures.watching(runner, lengths):
        run()
    return figures


@pytest.mark.parametrize("row_bytes", [1, 1 << 27])
@pytest.mark.parametrize("name", [name for name in DENSE + MIXTURES if name not in MASKED])
def test_rows_are_those_of_each_alone_whatever_they_are_padded_with(pair, monkeypatch, name, row_bytes):
    runner = pair(name)[1].runner
    monkeypatch.setattr(runner.blocks.rows, "row_bytes", row_bytes)
    padded = [*SHORT, *[SHORT[-1]] * (len(PROMPT_IDS) - len(SHORT))]
    lengths = {tuple(PROMPT_IDS): len(PROMPT_IDS), tuple(padded): len(SHORT)}
    both = figures_of(
        runner, lengths, lambda: list(runner.streams([PROMPT_IDS, padded, PROMPT_IDS[:1] * 8], [UNTOUCHED] * 3))
    )
    alone = [
        figures_of(runner, {tuple(ids): len(ids)}, lambda ids=ids: runner.trace(ids)) for ids in (PROMPT_IDS, SHORT)
    ]
    assert (both.unseen, list(both.largest)) == (set(), list(runner.layers))
    for layer, largest in both.largest.items():
        expected = {what: max(each.largest[layer][what] for each in alone) for what in SEEN}
        assert largest == pytest.approx(expected, rel=1e-4)
    assert bool(both.routed) == (name in MIXTURES)
    for place, routed in both.routed.items():
        parts = [each.routed[place] for each in alone]
        assert routed.chosen == sum(part.chosen for part in parts)
        if all(part.weight is not None for part in parts):
            assert routed.weight == pytest.approx(sum(part.weight for part in parts), rel=1e-4)


def hooks_of(runner):
    modules = [module for block in runner.stack for module in block.module.modules()]
    return [
        (sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks), vars(module).get("forward"))
        for module in modules
    ]


def test_nothing_is_left_on_the_model_where_another_watches_too(pair):
    runner = pair("qwen2_moe")[1].runner
    before = hooks_of(runner)
    with MlpFigures().watching(runner, {}):
        within = hooks_of(runner)
        figures_of(runner, {tuple(SHORT): len(SHORT)}, lambda: runner.trace(SHORT))
        assert hooks_of(runner) == within != before
    assert hooks_of(runner) == before
