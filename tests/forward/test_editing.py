"""Weights edited for a block of code: as if edited in place, and gone after it."""

import numpy as np
import pytest
import torch
from models import PLANTED, PROMPT, PROMPT_IDS, TEXT, TEXT_IDS, plant, random_llama, save

from analyzer.analyze.running import load_model
from analyzer.base.errors import ArchitectureError, ForwardError
from analyzer.source.opening import open_model


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    model = plant(random_llama())
    return model, save(model, tmp_path_factory.mktemp("models") / "planted")


def plain_loss(model):
    with torch.no_grad():
        logits = model(torch.tensor([TEXT_IDS])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT_IDS[1:])).item()


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 2.0])
def test_a_block_of_code_runs_with_edits_in_place(planted, factor):
    """Logits and loss are those of a plain model whose weight was edited, and after the block those of before."""
    plain, folder = planted
    model = load_model(open_model(folder))
    view = plain.model.layers[PLANTED.layer].mlp.down_proj.weight
    before = model.loss(TEXT)
    assert before == pytest.approx(plain_loss(plain), rel=1e-6)
    with model.edited({PLANTED: factor}):
        logits, loss = model.logits(PROMPT), model.loss(TEXT)
    kept = view[PLANTED.row, PLANTED.col].item()
    with torch.no_grad():
        view[PLANTED.row, PLANTED.col] = factor * kept
        expected, expected_loss = plain(torch.tensor([PROMPT_IDS])).logits[0].numpy(), plain_loss(plain)
        view[PLANTED.row, PLANTED.col] = kept
    assert logits.shape == (len(PROMPT_IDS), plain.config.vocab_size)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    assert abs(loss - before) > 1e-4
    assert model.loss(TEXT) == before


def test_edits_nest_and_are_gone_after_an_error(planted):
    model = load_model(open_model(planted[1]))
    other = PLANTED._replace(row=PLANTED.row + 1)
    before = model.loss(TEXT)
    with model.edited({PLANTED: 0.0}):
        zeroed = model.loss(TEXT)
        with model.edited({other: 0.0, PLANTED: 1.0}):
            inner = model.loss(TEXT)
        assert model.loss(TEXT) == zeroed
    with model.edited({other: 0.0}):
        assert model.loss(TEXT) == pytest.approx(inner, rel=1e-7)
    with pytest.raises(KeyError), model.edited({PLANTED: 0.0}):
        raise KeyError
    assert model.loss(TEXT) == before


def test_what_cannot_be_run_is_one_line(planted):
    model = load_model(open_model(planted[1]))
    with pytest.raises(ForwardError, match="cannot be run on 65 tokens: give 1 to 64"):
        model.logits(TEXT + " apple")
    with pytest.raises(ForwardError, match="cannot be run on 0 tokens"):
        model.logits("")
    with (
        model.edited({PLANTED._replace(row=10**6): 0.0}),
        pytest.raises(ArchitectureError, match=r"has no weight 1,1000000,31"),
    ):
        model.loss(TEXT)
    before = model.loss(TEXT)
    with (
        pytest.raises(ForwardError, match=f"weight {PLANTED} times nan: give a finite number"),
        model.edited({PLANTED: float("nan")}),
    ):
        pass
    with pytest.raises(ForwardError), model.edited({PLANTED._replace(row=-1): 0.0}):
        pass
    assert model.loss(TEXT) == before
