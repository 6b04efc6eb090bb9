"""What a verification tells of what a model says, beside the loss: against a plain model with edited weights."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from models import PLANTED, TEXT_IDS, load_plain, plant, random_llama, save
from models import verify_folder as verify

from analyzer.base.records import Coordinate
from analyzer.forward.edits import zeroing
from analyzer.verify.costs.effects import beside_loss


def logits_of(folder, name, zeroed=(), ids=TEXT_IDS):
    plain = load_plain(name, folder)
    with torch.no_grad():
        for c in zeroed:
            plain.downs[c.layer, c.expert][c.row, c.col] = 0
        return plain.model(torch.tensor([ids])).logits[0].double()


def compared(before, after):
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy(), (before.argmax(-1) == after.argmax(-1)).numpy()


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
