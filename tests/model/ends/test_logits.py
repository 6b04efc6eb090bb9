"""A sample of the vocabulary against all of it: who is in it, how often, and what it says on average."""

import pytest
import torch
from torch.nn.functional import kl_div

from analyzer.model.ends.logits import BLOCK, SURE, Draw, divergences_of, likelihoods_of

TOKENS = 3000


def made(states=12, seed=0):
    """Return logits of a likely few and an unlikely many, other ones, and targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(states, TOKENS, generator=generator)
    other = logits + 0.5 * torch.randn(states, TOKENS, generator=generator)
    return logits, other, torch.randint(TOKENS, (states,), generator=generator)


def drawn(logits, targets, seed=0, slices=3):
    """Return the likelihoods, and the sample of all states, drawn while a third of the logits goes by at a time."""
    draw = Draw(torch.Generator().manual_seed(seed))
    width = TOKENS // slices
    parts = [
        (slice(start, start + BLOCK), first, [logits[start : start + BLOCK, first : first + width]])
        for first in range(0, TOKENS, width)
        for start in range(0, len(logits), BLOCK)
    ]
    likelihoods = likelihoods_of(parts, targets, draw.look)
    return likelihoods, draw.sampled(slice(0, len(logits)), targets, likelihoods, lambda tokens: logits[:, tokens])


def exact(logits, targets):
    return torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")


def test_a_token_is_in_the_sample_by_its_largest_probability_in_the_block():
    logits, _, targets = made()
    largest = torch.stack([each.amax(dim=0) for each in torch.split(logits.softmax(-1), BLOCK)])
    chance = (SURE * largest).clamp(max=1)
    there = torch.zeros(len(chance), TOKENS)
    for seed in range(60):
        likelihoods, sample = drawn(logits, targets, seed)
        member = sample.weights > -torch.inf
        there[:, sample.tokens] += member
        torch.testing.assert_close(
            sample.weights[member], -chance[:, sample.tokens][member].log(), rtol=1e-4, atol=1e-5
        )
    torch.testing.assert_close(likelihoods, exact(logits, targets).float(), rtol=1e-5, atol=1e-5)
    assert (there[chance == 1] == 60).all()
    rare = chance < 0.2
    assert there[rare].sum().item() / 60 == pytest.approx(chance[rare].sum().item(), rel=0.03)
    assert sample.tokens.tolist() == sorted({*sample.tokens.tolist(), *targets.tolist()})
    assert sample.tokens[sample.targets].tolist() == targets.tolist()
    assert len(sample.tokens) < TOKENS / 3


def test_differences_of_likelihoods_are_right_on_average_and_each_is_near():
    logits, other, targets = made()
    wanted = exact(other, targets) - exact(logits, targets)
    found = []
    for seed in range(200):
        _, sample = drawn(logits, targets, seed)
        difference, spread = sample.differences(torch.arange(len(logits)), other[:, sample.tokens])
        found.append(difference.double())
    errors = torch.stack(found) - wanted
    assert errors.abs().max() < 0.35
    assert errors.std() < 0.06
    assert errors.mean(dim=0).abs().max() < 4 * errors.std() / 200**0.5 + 0.002  # and a bias of its variance's half
    p = logits.double().softmax(-1)
    change = (other - logits).double()
    parts = p, other.double().softmax(-1)
    wanted = torch.stack([((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).sqrt() for p in parts]).amax(dim=0)
    torch.testing.assert_close(spread.double(), wanted, rtol=0.3, atol=0.0)


@pytest.mark.parametrize("sure", [25, 150])  # of which float32 has a probability of the others, and none
def test_what_was_sure_and_is_no_more_has_a_spread(sure):
    logits, _, targets = made()
    logits[torch.arange(len(logits)), targets] += sure
    other = logits / sure
    _, sample = drawn(logits, targets)
    _, spread = sample.differences(torch.arange(len(logits)), other[:, sample.tokens])
    assert (exact(other, targets) - exact(logits, targets)).min() > 0.1
    assert spread.min() > 1
    again, _ = sample.differences(torch.arange(len(logits)), logits[:, sample.tokens])
    assert again.abs().max() < 1e-5


def test_what_changes_all_logits_alike_changes_no_likelihood():
    logits, _, targets = made()
    _, sample = drawn(logits, targets)
    difference, spread = sample.differences(torch.tensor([3, 9, 3]), logits[[3, 9, 3]][:, sample.tokens] + 7)
    assert difference.abs().max() < 1e-5
    assert spread.max() < 1e-5


def test_where_all_that_is_likely_is_in_the_sample_the_difference_is_told_exactly():
    logits, other, targets = made()
    few = slice(0, SURE // 2)  # each of them likelier than what is there for sure
    logits[:, few], other[:, few] = 60.0, other[:, few] + 57
    targets = targets % (SURE // 2)
    for slices in (1, 3, 5):
        _, sample = drawn(logits, targets, slices=slices)
        difference, _ = sample.differences(torch.arange(len(logits)), other[:, sample.tokens])
        wanted = exact(other, targets) - exact(logits, targets)
        torch.testing.assert_close(difference.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_logit_of_minus_infinity_is_none_of_a_sample_and_does_no_harm():
    logits, other, targets = made()
    for each in (logits, other):
        each[::2, 10:1500] = -torch.inf
    targets = targets % 10
    _, sample = drawn(logits, targets)
    difference, spread = sample.differences(torch.arange(len(logits)), other[:, sample.tokens])
    assert torch.isfinite(difference).all() and torch.isfinite(spread).all()
    wanted = exact(other, targets) - exact(logits, targets)
    assert (difference - wanted).abs().max() < 0.35


def test_what_is_no_number_is_told_by_the_spread():
    logits, other, targets = made()
    _, sample = drawn(logits, targets)
    other[2, sample.tokens[5]] = torch.nan
    spread = sample.differences(torch.arange(len(logits)), other[:, sample.tokens])[1]
    assert torch.isnan(spread).tolist() == [row == 2 for row in range(len(logits))]


@pytest.mark.parametrize("never", [slice(1000), slice(500, 1500), slice(2000, 3000)])
def test_divergences_are_those_of_the_whole_vocabulary_whichever_slice_of_it_is_never_said(never):
    logits, other, _ = made()
    targets = torch.full((12,), 1700)
    logits[:, never] = other[:, never] = -torch.inf
    parts = [(slice(0, 12), n, [each[:, n : n + 1000] for each in (logits, other)]) for n in range(0, TOKENS, 1000)]
    found = divergences_of(parts, 1, targets)
    one, two = (each.double().log_softmax(dim=-1) for each in (logits, other))
    kept = one > -torch.inf
    terms = kl_div(two[kept].view(12, -1), one[kept].view(12, -1), reduction="none", log_target=True)
    torch.testing.assert_close(found.divergences[0].double(), terms.sum(dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.likelihoods[0].double(), exact(other, targets), rtol=1e-5, atol=1e-5)
