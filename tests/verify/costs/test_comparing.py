"""What zeroing makes of what a model says, beside the loss: against the logits of a plain model with edited weights"""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from models import PLANTED, TEXT_IDS, hooked, load_plain, plant, random_llama, save, save_random
from models import verify_folder as verify

from analyzer.base.records import Coordinate
from analyzer.forward.edits import UNTOUCHED, zeroing
from analyzer.forward.losses import Comparison, token_losses
from analyzer.verify.costs.effects import beside_loss

WEIGHT = Coordinate(1, None, 5, 19)


def logits_of(folder, name, zeroed=(), ids=TEXT_IDS):
    plain = load_plain(name, folder)
    with torch.no_grad():
        for c in zeroed:
            plain.downs[c.layer, c.expert][c.row, c.col] = 0
        return plain.model(torch.tensor([ids])).logits[0].double()


def compared(before, after):
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy(), (before.argmax(-1) == after.argmax(-1)).numpy()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize("numbers", [1 << 24, 200], ids=["whole", "in slices"])
def test_divergence_and_agreement_are_those_of_the_plain_model(tmp_path, monkeypatch, name, numbers):
    monkeypatch.setattr("analyzer.model.ends.HEAD_NUMBERS", numbers)
    model = hooked(save_random(name, tmp_path))
    model.runner.blocks.sliced = True
    expert = None if (1, None) in load_plain(name, tmp_path).downs else 2
    weight = WEIGHT._replace(expert=expert)
    window, comparison = model.tokens.window(TEXT_IDS), Comparison()
    comparison.asked.add(zeroing([weight]))
    token_losses(model.runner, [(window, UNTOUCHED)], comparison=comparison)  # in a pass of its own
    token_losses(model.runner, [(window, zeroing([weight])), (window, zeroing([]))], comparison=comparison)
    divergence, agrees = comparison.found[window, zeroing([weight])]
    before, after = logits_of(tmp_path, name), logits_of(tmp_path, name, [weight])
    wanted, same = compared(before[list(window.places)], after[list(window.places)])
    assert wanted.max() > 1e-3
    assert divergence == pytest.approx(wanted, rel=1e-3, abs=2e-5)
    assert agrees.tolist() == same.tolist()
    assert list(comparison.found) == [(window, zeroing([weight]))]  # what was not asked for is not compared


def test_what_was_kept_is_compared_without_another_pass(tmp_path):
    model, weight = hooked(save_random("llama", tmp_path)), zeroing([WEIGHT])
    window, comparison = model.tokens.window(TEXT_IDS), Comparison()
    comparison.keeping = True
    losses = [token_losses(model.runner, [(window, each)], comparison=comparison) for each in (UNTOUCHED, weight)]
    passes = model.runner.blocks.cost.passes
    comparison.asked.add(weight)
    assert comparison.lacks(window, weight)
    assert token_losses(model.runner, [], comparison=comparison) == []
    assert model.runner.blocks.cost.passes == passes
    kept = comparison.found.pop((window, weight))
    (again,) = token_losses(model.runner, [(window, weight)], comparison=comparison)
    assert again == pytest.approx(losses[1][0], abs=1e-6)
    comparison.found.clear()
    for twice in token_losses(model.runner, [(window, weight)] * 2, comparison=comparison):  # of a text that repeats
        assert twice == pytest.approx(again, abs=1e-6)
    for one, other in zip(kept, comparison.found[window, weight], strict=True):
        assert one == pytest.approx(other)
    assert comparison.kept == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(plant(random_llama()), tmp_path_factory.mktemp("models") / "planted")


def test_a_verification_tells_them_of_what_ran_over_the_whole_text(folder):
    idle = Coordinate(3, None, 9, 5)
    planted, other = verify(folder, weights=(PLANTED, idle)).asked
    before = logits_of(folder, "llama")[:-1]
    for weight in (planted, other):
        divergence, agrees = compared(before, logits_of(folder, "llama", [weight.coordinate])[:-1])
        assert weight.kl_divergence == pytest.approx(divergence.mean(), rel=1e-3, abs=2e-6)
        assert weight.top1_agreement == pytest.approx(agrees.mean())
    shares = [count / (len(TEXT_IDS) - 1) for count in Counter(TEXT_IDS[1:]).values()]
    unigram = -sum(share * math.log(share) for share in shares)
    for weight in (planted, other):
        assert weight.loss > unigram  # a random model: nothing of it can be destroyed
        assert weight.destroyed is None


def test_a_model_is_destroyed_that_knew_more_than_unigrams_and_knows_less():
    def destroyed(before, after):
        measuring = SimpleNamespace(
            loss=before,
            unigram_loss=2.0,
            compared=lambda _: (0.5, 0.9),
            of=lambda _: SimpleNamespace(loss_zeroed=after),
        )
        return beside_loss(measuring, zeroing([PLANTED]))

    assert destroyed(1.0, 2.1) == (0.5, 0.9, True)
    assert destroyed(1.0, 2.0) == (0.5, 0.9, False)
    assert destroyed(2.1, 5.0) == (0.5, 0.9, None)


def test_a_search_compares_no_weight_that_a_part_of_the_text_settled(folder):
    weights = verify(folder).super_weights
    assert any(w.loss_tokens == len(TEXT_IDS) - 1 for w in weights)
    for weight in weights:
        whole = weight.loss_tokens == len(TEXT_IDS) - 1 and weight.zeroed_with is None
        assert (weight.kl_divergence is not None) == whole
