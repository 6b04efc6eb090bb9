"""Figure 5 on a planted model: distributions, masses and the lens against stock transformers with edited weights."""

import json

import numpy as np
import pytest
import torch
import transformers
from models import PLANTED, save_random
from plainly import times
from scipy import stats

from analyzer.base.errors import ForwardError
from analyzer.experiments import tokens
from analyzer.experiments.data.stop_words import stop_ids
from analyzer.experiments.reports.report import render_experiment


def distributions(folder, model):
    """Return the probabilities of what follows each passage without its last word, [passages, vocabulary]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for line in (folder / "passages.txt").read_text().splitlines():
        ids = tokenizer(" ".join(line.split(" ")[:-1]), return_tensors="pt")
        with torch.no_grad():
            found.append(model(input_ids=ids["input_ids"]).logits[0, -1].double().softmax(dim=-1).numpy())
    return np.stack(found)


@pytest.fixture
def both(planted):
    folder, plain = planted
    before = distributions(folder, plain)
    with times(plain, {PLANTED: 0.0}):
        return before, distributions(folder, plain)


@pytest.fixture
def document(run):
    return json.loads(json.dumps(run(tokens.EXPERIMENT, top=4).as_json(), allow_nan=False))


def test_tokens_are_the_top_ones_of_both_means(both, document):
    before, after = (each.mean(axis=0) for each in both)
    first, last = (np.argsort(-each, kind="stable")[:4].tolist() for each in (before, after))
    assert [each["id"] for each in document["tokens"]] == list(dict.fromkeys([*first, *last]))
    for each in document["tokens"]:
        assert each["before"] == pytest.approx(before[each["id"]], abs=1e-5)
        assert each["after"] == pytest.approx(after[each["id"]], abs=1e-5)
        assert each["ratio"] == pytest.approx(after[each["id"]] / before[each["id"]], rel=1e-3)
        assert each["low"] <= each["ratio"] <= each["high"]


def test_entropy_divergence_and_agreement(both, document):
    before, after = both
    arms = {arm["name"]: arm for arm in document["arms"]}
    zeroed = arms[f"{PLANTED} zeroed"]
    assert zeroed["zeroed"] == 1
    assert zeroed["entropy"] == pytest.approx(stats.entropy(after, axis=1).mean(), abs=1e-5)
    assert zeroed["kl"] == pytest.approx(stats.entropy(before, after, axis=1).mean(), abs=1e-5)
    assert zeroed["top1_agreement"] == (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    assert arms["original"]["kl"] == pytest.approx(0, abs=1e-9)
    assert zeroed["kl_low"] <= zeroed["kl"] <= zeroed["kl_high"]
    assert zeroed["kl"] > 1e-4


def test_the_mass_of_stop_words(both, run, monkeypatch):
    monkeypatch.setattr(
        "analyzer.experiments.tokens.stop_ids", lambda texts: [texts.index("apple"), texts.index("fig")]
    )
    found = run(tokens.EXPERIMENT).as_json()
    masses = [each[:, [1, 6]].sum(axis=1).mean() for each in both]
    assert [arm["stop_mass"] for arm in found["arms"][:2]] == pytest.approx(masses, abs=1e-5)
    assert found["stop_words"] == {"version": 1, "tokens": 2}
    assert found["arms"][0]["rest_mass"] == pytest.approx(1 - masses[0], abs=1e-5)


def test_the_lens_is_the_column_through_the_final_norm_and_the_head(planted, document):
    _, plain = planted
    weight = plain.model.layers[PLANTED.layer].mlp.down_proj.weight
    seen = []
    handle = plain.model.layers[PLANTED.layer].mlp.down_proj.register_forward_hook(
        lambda _, args, out: seen.append((args[0][0, :, PLANTED.col], out[0, :, PLANTED.row]))
    )
    longest = max((planted[0] / "passages.txt").read_text().splitlines(), key=lambda line: len(line.split()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(planted[0])
    with torch.no_grad():
        plain(**tokenizer(longest.rpartition(" ")[0], return_tensors="pt"))
        handle.remove()
        ((entered, left),) = seen
        direction = weight[:, PLANTED.col] * entered[left.abs().argmax()].sign()
        logits = plain.lm_head(plain.model.norm(direction)).numpy()
    (found,) = document["lens"]
    assert found["weight"] == {"layer": 1, "expert": None, "row": 77, "col": 31}
    order = np.argsort(-logits)
    assert [each["id"] for each in found["promoted"]] == order[:10].tolist()
    assert [each["id"] for each in found["suppressed"]] == order[::-1][:10].tolist()
    assert found["promoted"][0]["logit"] == pytest.approx(logits.max(), abs=1e-4)


def test_the_result_is_the_same_again_and_as_wide_as_a_terminal(run):
    first, again = (run(tokens.EXPERIMENT) for _ in range(2))
    assert first.as_json() == again.as_json()
    text = render_experiment(first)
    assert max(map(len, text.splitlines())) <= 100
    assert "Most likely after" in text


def test_one_passage_has_no_interval(run):
    found = run(tokens.EXPERIMENT, settings={"limit": 1}).as_json()
    assert found["tokens"][0]["low"] is None
    assert found["protocol"]["prompts"] == 1


def test_a_masked_model_is_refused(run, tmp_path):
    folder = save_random("bert", tmp_path)
    with pytest.raises(ForwardError, match="needs a causal language model"):
        run(tokens.EXPERIMENT, folder=folder, weights=(PLANTED._replace(row=5, col=19),))


def test_stop_words_are_words_and_marks_in_any_case():
    assert stop_ids([" The", "apple", ",", "\n", "hE", "fig.", "."]) == [0, 2, 3, 4, 6]


def test_of_a_model_without_stop_words_the_claim_cannot_be_told(document):
    (claim,) = document["claims"]
    assert claim["holds"] is None
    assert "no probability" in claim["why"]


@pytest.mark.parametrize(("factors", "holds"), [((3, 4, 3, 4), True), ((1, 4, 1, 4), None), ((1, 1, 1, 1.1), False)])
def test_the_claim_is_judged_by_its_interval(factors, holds):
    none, before = np.zeros(4), np.array([0.1, 0.2, 0.1, 0.2])
    said = [tokens.Said(none, none, none, none, each) for each in (before, before * factors)]
    assert tokens._claim(said, 0).holds is holds
