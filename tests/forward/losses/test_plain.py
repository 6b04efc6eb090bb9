"""Losses against the cross-entropy of plain transformers."""

import pytest
import torch
from models import (
    PLANTED,
    TEXT,
    hooked,
    load_plain,
    random_llama,
    save,
    save_random,
)

from analyzer.base.records import Coordinate


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


@pytest.mark.parametrize("limit", ["forward.losses.plain.PASS_BYTES", "model.ends.head.LOGIT_BYTES"])
def test_small_batches_give_the_same_losses(planted, monkeypatch, limit):
    _, analyzed = planted
    windows, sets = [*analyzed.tokens.windows(TEXT), [5, 6, 7]], [(), (PLANTED,), (Coordinate(3, None, 4, 5),)]
    done = []
    at_once = analyzed.losses(windows, sets, done.append)
    assert sum(done) == len(windows) * len(sets)
    monkeypatch.setattr(f"analyzer.{limit}", 1)
    assert analyzed.losses(windows, sets) == pytest.approx(at_once, rel=1e-6)


def test_a_loss_that_is_no_number_is_infinite(tmp_path):
    model = random_llama()
    model.lm_head.weight.data[12] = float("nan")
    assert hooked(save(model, tmp_path)).losses([[1, 2, 3]], [()]) == [float("inf")]


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
