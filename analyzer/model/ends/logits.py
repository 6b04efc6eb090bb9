"""What logits tell, of the whole vocabulary a part at a time or of a sample of it: likelihoods and divergences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

BLOCK = 8  # of states beside each other, which share a sample
SURE = 128  # a token of a probability of 1 / SURE or more is in the sample; of less, by that part of it
LogitsPart = tuple[slice, int, Sequence[torch.Tensor]]
"""A part of all logits: of which states, from which token of the vocabulary on, [states, tokens] of each of several."""


class Divergences(NamedTuple):
    """What several models say after n states, beside what one says: of each model and state, [rows, n].

    Its negative log-likelihood of the target, the divergence KL(one || model), both in nats, and whether the likeliest
    token is the same.
    """

    likelihoods: torch.Tensor
    divergences: torch.Tensor
    agrees: torch.Tensor


def likelihoods_of(
    parts: Iterable[LogitsPart],
    targets: torch.Tensor,
    look: Callable[[slice, int, torch.Tensor, torch.Tensor], object] = lambda *_: None,
) -> torch.Tensor:
    """Return the negative log-likelihood of each target [n], in nats: there never is a tensor of all logits.

    Each part is shown to `look` with the log-sum-exp of its states' logits so far.
    """
    total, wanted = torch.full(targets.shape, -torch.inf), torch.full(targets.shape, torch.nan)
    total, wanted = total.to(targets.device), wanted.to(targets.device)
    for part, first, (logits,) in parts:
        total[part] = torch.logaddexp(total[part], logits.logsumexp(dim=-1))
        wanted[part] = _logits_at(targets[part] - first, logits, wanted[part])
        look(part, first, logits, total[part])
    return total - wanted


def divergences_of(parts: Iterable[LogitsPart], rows: int, targets: torch.Tensor) -> Divergences:
    """Return what each of `rows` models says after n states, beside what the first says: the parts have all of them.

    With p the probabilities of the first and z the logits, KL(first || other) is the sum of p (z1 - z2), less the
    difference of the log-sum-exps. What p is, the whole vocabulary tells: the sum is scaled again with each slice.
    """
    none = torch.full((rows + 1, len(targets)), -torch.inf, device=targets.device)
    totals, largest, wanted = none.clone(), none.clone(), torch.full_like(none, torch.nan)
    likeliest, mean = torch.zeros_like(none, dtype=torch.long), torch.zeros_like(none[1:])
    for part, first, logits in parts:
        before = totals[0, part].clone()
        for row, each in enumerate(logits):
            totals[row, part] = torch.logaddexp(totals[row, part], each.logsumexp(dim=-1))
            wanted[row, part] = _logits_at(targets[part] - first, each, wanted[row, part])
            most, where = each.max(dim=-1)
            likeliest[row, part] = torch.where(most > largest[row, part], where + first, likeliest[row, part])
            largest[row, part] = torch.maximum(largest[row, part], most)
        p = (logits[0] - totals[0, part, None]).exp()
        scale = (before - totals[0, part]).exp()
        mean[:, part] *= torch.where(before == -torch.inf, 0.0, scale)  # all that went by may be minus infinity
        for row, each in enumerate(logits[1:]):
            terms = (logits[0] - each).mul_(p)
            mean[row, part] += terms.nansum(dim=-1)  # a logit may be minus infinity in both; NaN is in the totals too
    return Divergences(
        (totals - wanted)[1:], (mean - totals[0] + totals[1:]).clamp(min=0), likeliest[1:] == likeliest[0]
    )


def _logits_at(places: torch.Tensor, logits: torch.Tensor, else_: torch.Tensor) -> torch.Tensor:
    """Return the logit at each place [n] of logits [n, tokens], something else where it is not among them."""
    here = (places >= 0) & (places < logits.shape[1])
    found = logits.gather(1, places.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    return torch.where(here, found, else_)


def _deviation(values: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation [n] of values [n, m] each of which is such a part of all."""
    return (part * (values - (part * values).sum(dim=-1, keepdim=True)) ** 2).sum(dim=-1).sqrt()


@dataclass(frozen=True)
class Sampled:
    """Some states of a text and a sample of the vocabulary for them, which tells how other states' likelihoods differ.

    Each block of `BLOCK` states has a sample of its own: each token is in it by chance, independently of all others,
    with `SURE` times the largest probability that it has after any of these states, 1 at most (Poisson sampling).
    """

    tokens: torch.Tensor
    """All that is in a sample, and the targets, ascending [m]."""
    logits: torch.Tensor
    """Of these tokens after each state, [n, m]."""
    weights: torch.Tensor
    """By block and token the negative logarithm of that chance, minus infinity where it is not in it, [blocks, m]."""
    targets: torch.Tensor
    """Where each state's target is among the tokens, [n]."""

    def differences(self, states: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return by how much likelihoods differ, in nats, for other logits [k, m] in place of those of `states` [k].

        With p the probabilities after a state and d what each logit changes by, the log-sum-exp changes by the
        logarithm of the mean of exp(d) under p: that mean is estimated from the sample, each token by its p over the
        chance that it had (Horvitz and Thompson), as in the sampled softmax of Bengio and Senecal. Beside it, the
        standard deviation of d under p, or under what p becomes where that is larger: of what it is small, the estimate
        is near. Of what was sure before, only the second tells that it is no more.
        """
        before = self.logits[states]
        change, share = logits - before, (before + self.weights[states // BLOCK]).log_softmax(dim=-1)
        difference = change.gather(1, self.targets[states, None])[:, 0]
        change = torch.where(share > -torch.inf, change, 0.0)  # a logit may be minus infinity in both
        shift = (share + change).logsumexp(dim=-1)
        spreads = [_deviation(change, each.exp()) for each in (share, share + change - shift[:, None])]
        return shift - difference, torch.maximum(*spreads)


class Draw:
    """Draws the samples for a text's states while their logits go by."""

    def __init__(self, generator: torch.Generator) -> None:
        """`generator` is on the CPU, so that all devices draw alike."""
        self._generator = generator
        self._seen: list[tuple[torch.Tensor, ...]] = []  # block, token and chance of each that may be in a sample

    def look(self, part: slice, first: int, logits: torch.Tensor, total: torch.Tensor) -> None:
        """Keep of a part of all logits what may be in a sample; it begins with a block. See likelihoods_of.

        A log-sum-exp so far is never above that of all: nor is a probability by that one below the true one.
        """
        pieces = zip(torch.split(logits, BLOCK), torch.split(total, BLOCK), strict=True)
        most = torch.stack([(piece - whole[:, None]).amax(dim=0) for piece, whole in pieces]).exp()
        chances = torch.rand(most.shape, generator=self._generator).to(most.device)
        blocks, tokens = (chances < SURE * most).nonzero(as_tuple=True)
        self._seen.append((blocks + part.start // BLOCK, tokens + first, chances[blocks, tokens]))

    def sampled(
        self,
        part: slice,
        targets: torch.Tensor,
        likelihoods: torch.Tensor,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
    ) -> Sampled:
        """Return the sample for a part of the states, whole blocks, with their targets and likelihoods [n].

        `logits_of` returns their logits of tokens, [n, tokens].
        """
        first, count = part.start // BLOCK, -(-len(targets) // BLOCK)
        blocks, drawn, chances = (torch.cat(each) for each in zip(*self._seen, strict=True))
        here = (blocks >= first) & (blocks < first + count)
        tokens = torch.unique(torch.cat([drawn[here], targets]))
        chance = torch.full((count, len(tokens)), torch.inf, device=targets.device)
        chance[blocks[here] - first, torch.searchsorted(tokens, drawn[here])] = chances[here]
        logits, at = logits_of(tokens), torch.searchsorted(tokens, targets)
        total = likelihoods + logits.gather(1, at[:, None])[:, 0]
        most = torch.stack([piece.amax(dim=0) for piece in torch.split(logits - total[:, None], BLOCK)]).exp()
        weights = torch.where(chance < SURE * most, -(SURE * most).clamp(max=1).log(), -torch.inf)
        kept = (weights > -torch.inf).any(dim=0)
        kept[at] = True
        tokens, places = tokens[kept], kept.cumsum(dim=0) - 1
        return Sampled(tokens, logits[:, kept], weights[:, kept], places[at])
