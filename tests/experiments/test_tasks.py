"""Tasks of lm-evaluation-harness on a planted model, against log-likelihoods of stock transformers."""

import importlib.util
import json
import math

import pytest
import torch
import transformers
from models import PLANTED
from plainly import times

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate
from analyzer.experiments import tasks

HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not here: pip install '.[tasks]'"
)
SECOND = Coordinate(3, None, 5, 19)
EXAMPLES = [
    {"question": "apple banana pear", "choices": ["banana", "pear apple"], "answer": 0},
    {"question": "pear pear", "choices": ["apple banana", "pear"], "answer": 1},
    {"question": "banana apple banana apple", "choices": ["pear", "apple apple"], "answer": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
metric_list: [{{metric: {metric}}}]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of tasks of our own, with their data; no network is asked."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, EXAMPLES)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    kinds = {
        "choosing": ("multiple_choice", "answer", "acc"),
        "rolling": ("loglikelihood_rolling", '"{{question}}"', "byte_perplexity"),
        "making": ("generate_until", '"{{question}}"', "exact_match"),
    }
    for name, (kind, target, metric) in kinds.items():
        text = TASK.format(name=name, data=data, kind=kind, target=target, metric=metric)
        choices = "doc_to_choice: choices\n" if kind == "multiple_choice" else ""
        (folder / f"{name}.yaml").write_text(text + choices)
    return str(folder)


def score(plain, tokenizer, context, said):
    """Return the log-likelihood of what follows a context, and whether each token of it is the likeliest."""
    ids = tokenizer(context + said, return_tensors="pt")["input_ids"]
    before = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        logs = plain(input_ids=ids).logits[0].double().log_softmax(dim=-1)
    places = range(before, ids.shape[1])
    chosen = [int(logs[place - 1].argmax()) == int(ids[0, place]) for place in places]
    return sum(float(logs[place - 1, ids[0, place]]) for place in places), all(chosen)


@HARNESS
def test_accuracies_are_those_of_edited_weights(planted, run, own):
    folder, plain = planted
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    result = run(tasks.EXPERIMENT, tasks=("choosing",), include=own, weights=(PLANTED, SECOND))
    sets = {"original": (), "all zeroed": (PLANTED, SECOND), f"{PLANTED} zeroed": (PLANTED,)}
    arms = {arm["name"]: arm for arm in result.as_json()["arms"]}
    for name, zeroed in sets.items():
        with times(plain, dict.fromkeys(zeroed, 0.0)):
            scores = [
                [score(plain, tokenizer, each["question"], f" {choice}")[0] for choice in each["choices"]]
                for each in EXAMPLES
            ]
        right = [max(range(2), key=each.__getitem__) for each in scores]
        accuracy = sum(n == each["answer"] for n, each in zip(right, EXAMPLES, strict=True)) / 3
        assert arms[name]["scores"]["choosing"]["acc"] == pytest.approx(accuracy)
        assert arms[name]["mean"] == pytest.approx(accuracy)


@HARNESS
def test_log_likelihoods_are_those_of_stock_transformers(planted, run):
    from lm_eval.api.instance import Instance

    from analyzer.experiments.data.harness import Respondent
    from analyzer.experiments.lab.records import Experiment, Outcome
    from analyzer.forward.edits import UNTOUCHED, zeroing

    folder, plain = planted
    labs = []
    run(Experiment("any", "Any.", lambda lab: labs.append(lab) or Outcome((), ()), needs="tasks"))
    asked = Respondent(labs[0].runner, labs[0].tokens, [UNTOUCHED, zeroing([PLANTED])], lambda *_: None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pairs = [(each["question"], f" {said}") for each in EXAMPLES for said in each["choices"]]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    for asked.arm, zeroed in enumerate(((), (PLANTED,))):
        with times(plain, dict.fromkeys(zeroed, 0.0)):
            expected = [score(plain, tokenizer, *pair) for pair in pairs]
        found = asked.loglikelihood(requests, disable_tqdm=True)
        assert [each[0] for each in found] == pytest.approx([each[0] for each in expected], abs=1e-4)
        assert [each[1] for each in found] == [each[1] for each in expected]


@HARNESS
def test_whole_texts_are_judged_and_what_is_made_is_refused(planted, run, own):
    folder, plain = planted
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    total = 0.0
    texts = [each["question"] for each in EXAMPLES[:2]]
    for text in texts:
        ids = torch.tensor([[start, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logs = plain(input_ids=ids).logits[0].double().log_softmax(dim=-1)
        total += float(logs[:-1].gather(1, ids[0, 1:, None]).sum())
    result = run(tasks.EXPERIMENT, tasks=("rolling",), include=own, limit=2)
    scores = result.as_json()["arms"][0]["scores"]["rolling"]
    assert scores["byte_perplexity"] == pytest.approx(math.exp(-total / sum(map(len, texts))), rel=1e-4)
    assert result.as_json()["protocol"]["limit"] == 2
    with pytest.raises(ForwardError, match="text that is made"):
        run(tasks.EXPERIMENT, tasks=("making",), include=own)
    with pytest.raises(ForwardError, match="cannot run nonsense"):
        run(tasks.EXPERIMENT, tasks=("nonsense",), include=own)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is here")
def test_without_the_harness_it_is_named(run):
    with pytest.raises(ForwardError, match="pip install 'lm-eval"):
        run(tasks.EXPERIMENT)
