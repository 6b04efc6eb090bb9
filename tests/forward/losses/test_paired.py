"""Losses beside those of the untouched model: exact, estimated, compared; each against a plain model's logits."""

import numpy as np
import pytest
import torch
from models import TEXT_IDS, hooked, load_plain, save_random

from analyzer.base.records import Coordinate
from analyzer.forward.checking import check_rows
from analyzer.forward.edits import UNTOUCHED, scaling, zeroing
from analyzer.forward.losses.paired import PairedLosses
from analyzer.model.ends.head import LEAST_SAMPLED
from analyzer.model.ends.logits import Sampled

WEIGHT = Coordinate(1, None, 5, 19)
KEPT = 1 << 24
IDS = TEXT_IDS * 2


def logits_of(folder, name, factors=(), ids=TEXT_IDS):
    plain = load_plain(name, folder)
    with torch.no_grad():
        for c, factor in factors:
            plain.downs[c.layer, c.expert][c.row, c.col] *= factor
        return plain.model(torch.tensor([ids])).logits[0].double()


def compared(before, after):
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy(), (before.argmax(-1) == after.argmax(-1)).numpy()


def exact(logits, window):
    chosen, targets = logits[list(window.places)], torch.tensor(window.targets)
    return torch.nn.functional.cross_entropy(chosen, targets, reduction="none").numpy()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize("numbers", [1 << 24, 200], ids=["whole", "in slices"])
def test_divergence_and_agreement_are_those_of_the_plain_model(tmp_path, monkeypatch, name, numbers):
    monkeypatch.setattr("analyzer.model.ends.stored.HEAD_NUMBERS", numbers)
    model = hooked(save_random(name, tmp_path))
    model.runner.blocks.output.in_parts = True
    expert = None if (1, None) in load_plain(name, tmp_path).downs else 2
    weight = WEIGHT._replace(expert=expert)
    window, tell = model.tokens.window(TEXT_IDS), PairedLosses(model.runner, KEPT)
    (untouched,) = tell([(window, UNTOUCHED)])
    told, same = tell([(window, zeroing([weight])), (window, zeroing([]))], compared=True)
    before, after = logits_of(tmp_path, name), logits_of(tmp_path, name, [(weight, 0)])
    assert untouched.losses == pytest.approx(exact(before, window), abs=2e-5)
    assert told.losses == pytest.approx(exact(after, window), abs=2e-5)
    wanted, agrees = compared(before[list(window.places)], after[list(window.places)])
    assert wanted.max() > 1e-3
    assert told.divergences == pytest.approx(wanted, rel=1e-3, abs=2e-5)
    assert told.agrees.tolist() == agrees.tolist()
    assert same.losses.tolist() == untouched.losses.tolist()


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A model whose vocabulary is large enough to be sampled, with likely tokens and unlikely ones."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_random("llama", folder, vocab_size=LEAST_SAMPLED)
    model = hooked(folder)
    check_rows(model.runner, IDS)
    return folder, model


def told_of(model, interventions, *, seed=None, ids=IDS, prefix=None, **options):
    """Return a window, or its beginning, and what is told of it untouched and under interventions."""
    tell, window = PairedLosses(model.runner, KEPT), model.tokens.window(ids)
    if seed is not None:
        tell._generator.manual_seed(seed)
    tell([(window, UNTOUCHED)])
    window = window if prefix is None else window.prefix(prefix)
    return window, tell([(window, each) for each in interventions], **options)


@pytest.mark.parametrize("prefix", [None, 77])
def test_estimates_are_near_what_the_whole_vocabulary_says(sampled, prefix):
    folder, model = sampled
    factors = (0.98, 0.0)
    window, told = told_of(model, [scaling({WEIGHT: each}) for each in factors], prefix=prefix, sampled=True)
    assert [each.sampled for each in told] == [True, True]
    before = exact(logits_of(folder, "llama", ids=IDS), window)
    for each, factor in zip(told, factors, strict=True):
        wanted = exact(logits_of(folder, "llama", [(WEIGHT, factor)], IDS), window)
        assert len(each.losses) == len(wanted)
        delta, true = each.losses - before, wanted - before
        assert abs(delta.mean() - true.mean()) < 0.1 * true.std()
        assert np.median(np.abs(delta - true)) < 0.1 * true.std()


def test_no_more_states_go_beside_a_sample_at_once_than_there_is_memory_for(sampled, monkeypatch):
    _, model = sampled
    factors, most, tell_differences = np.linspace(0.5, 0.99, 20), 1 << 20, Sampled.differences
    asked = []

    def differences(sample, states, logits):
        asked.append(logits.nbytes)
        return tell_differences(sample, states, logits)

    monkeypatch.setattr(Sampled, "differences", differences)
    interventions = [scaling({WEIGHT: float(factor)}) for factor in factors]
    at_once = told_of(model, interventions, sampled=True)[1]
    assert max(asked) > most
    asked.clear()
    monkeypatch.setattr("analyzer.model.ends.head.LOGIT_BYTES", most)
    in_parts = told_of(model, interventions, sampled=True)[1]
    assert max(asked) <= most
    for one, other in zip(at_once, in_parts, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-4)


def test_a_token_whose_logits_change_by_much_is_told_exactly(sampled, monkeypatch):
    folder, model = sampled
    monkeypatch.setattr("analyzer.forward.losses.paired.SPREAD", 0.4)
    window, (told,) = told_of(model, [scaling({WEIGHT: -20.0})], sampled=True)
    before, after = (logits_of(folder, "llama", factors, IDS) for factors in ((), [(WEIGHT, -20.0)]))
    p, change = before.softmax(-1), after - before
    spread = ((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).sqrt()[list(window.places)].numpy()
    much, wanted = spread > 0.6, exact(after, window)
    assert 20 < much.sum() < 110
    assert told.losses[much] == pytest.approx(wanted[much], abs=1e-4)
    assert np.abs(told.losses - wanted)[~much].max() > 1e-3


def test_what_a_sample_misses_is_made_up_for_on_average(sampled, monkeypatch):
    """A token that is in hardly any sample becomes likely everywhere, and nothing else changes."""
    folder, model = sampled
    window = model.tokens.window(IDS)
    head = model.blocks.model.get_output_embeddings()
    runner, found = model.runner, []
    logits = logits_of(folder, "llama", ids=IDS)[list(window.places)]
    rare = int(logits.softmax(-1).amax(dim=0).argmin())
    raised = torch.zeros(head._shape[0])
    raised[rare] = logits.logsumexp(-1).max().item() - logits[:, rare].min().item()
    wanted = torch.logaddexp(logits.logsumexp(-1), logits[:, rare] + raised[rare]) - logits.logsumexp(-1)
    for seed in range(60):
        tell = PairedLosses(runner, KEPT)
        tell._generator.manual_seed(seed)
        (untouched,) = tell([(window, UNTOUCHED)])
        with monkeypatch.context() as patch:
            patch.setattr(head, "bias", raised)
            # What changes nothing else in the states, but by rounding, so that all are told anew.
            (told,) = tell([(window, scaling({WEIGHT: 1 + 1e-6}))], sampled=True)
        found.append(told.losses - untouched.losses)
    means = np.array(found).mean(axis=1)
    assert means.mean() == pytest.approx(wanted.mean().item(), rel=0.05)
    assert np.median(np.concatenate(found)) == pytest.approx(0, abs=1e-3)  # what the samples alone say


def test_the_same_is_told_each_time(sampled):
    _, model = sampled
    one, other = (told_of(model, [zeroing([WEIGHT])], sampled=True)[1][0].losses for _ in range(2))
    assert one.tolist() == other.tolist()
    another = told_of(model, [zeroing([WEIGHT])], seed=7, sampled=True)[1][0].losses
    assert one.tolist() != another.tolist()


@pytest.mark.parametrize("compare", [False, True])
def test_what_was_estimated_is_told_exactly_without_another_pass(sampled, compare):
    folder, model = sampled
    window, tell = model.tokens.window(IDS), PairedLosses(model.runner, KEPT)
    pair, other = (window, zeroing([WEIGHT])), (window, scaling({WEIGHT: 0.5}))
    tell([(window, UNTOUCHED)])
    tell([pair, (window.prefix(20), zeroing([WEIGHT]))], sampled=True)
    passes = model.blocks.cost.passes
    done = []
    (told,) = tell([pair], done.append, compared=compare)
    assert (model.blocks.cost.passes, done) == (passes, [1])
    wanted = exact(logits_of(folder, "llama", [(WEIGHT, 0)], IDS), window)
    assert told.losses == pytest.approx(wanted, abs=1e-4)
    assert (told.divergences is not None, told.sampled) == (compare, False)
    tell([pair], sampled=True)
    both = tell([other, pair, other], done.append, compared=compare)  # of a text that repeats
    assert model.blocks.cost.passes == passes + 2
    assert both[1].losses == pytest.approx(wanted, abs=1e-4)
    assert both[0].losses.tolist() == both[2].losses.tolist()
    assert sum(done) == 4
    (again,) = tell([pair], compared=compare)  # nothing is kept of what was told exactly
    assert model.blocks.cost.passes == passes + 3
    assert again.losses == pytest.approx(wanted, abs=1e-4)


def test_no_more_states_are_kept_than_there_is_room_for(sampled):
    _, model = sampled
    window = model.tokens.window(IDS)
    pairs = [(window, scaling({WEIGHT: factor})) for factor in (0.5, 0.25, 0.0)]
    tell = PairedLosses(model.runner, 2 * 4 * len(window.places) * model.runner.hidden_size)
    tell([(window, UNTOUCHED)])
    for _ in range(2):
        tell(pairs[:1], sampled=True)
    tell(pairs, sampled=True)
    passes = model.blocks.cost.passes
    tell(pairs[:2])
    assert model.blocks.cost.passes == passes
    tell(pairs)  # nothing is left
    assert model.blocks.cost.passes == passes + 1
    tell(pairs, sampled=True)  # there is room again
    passes = model.blocks.cost.passes
    tell(pairs[:2])
    assert model.blocks.cost.passes == passes


def test_a_window_that_was_not_run_untouched_is_told_exactly(sampled):
    folder, model = sampled
    window = model.tokens.window(IDS)
    (told,) = PairedLosses(model.runner, KEPT)([(window, zeroing([WEIGHT]))], sampled=True)
    assert told.losses == pytest.approx(exact(logits_of(folder, "llama", [(WEIGHT, 0)], IDS), window), abs=1e-4)
    assert (told.sampled, told.divergences) == (False, None)
