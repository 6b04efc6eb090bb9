"""What is said of any result: one table of arms, figures of others, nothing raw, no line too wide."""

import math

import pytest

from analyzer.base.records import Coordinate
from analyzer.experiments.lab.records import Claim, Cost, Measured, Outcome, Result, Weight
from analyzer.experiments.reports.published import published_of
from analyzer.experiments.reports.report import arms_table, render_experiment
from analyzer.experiments.reports.wording import change_of

PROTOCOL = {
    "data": "wikitext2", "repository": "a/b", "commit": "c" * 40, "windows": 8, "length": 1024, "tokens": 8184,
    "bos": True, "dtype": "float32", "device": "cpu",
}  # fmt: skip
ARMS = (
    Measured("original", 0, Cost(3.0, 0.0, 0.0, 0.0)),
    Measured("zeroed", 1, Cost(5.0, 2.0, 1.5, 2.5), facts={"factor": 0.0, "of": "x"}),
    Measured("restored", 1, Cost(3.5, 0.5, None, None), 0.75, {"factor": 0.5, "of": "x"}),
    Measured("broken", 7000, Cost(math.inf, math.inf, math.inf, math.inf)),
)


def result(model="me/llama-7b", **changes):
    given = {
        "experiment": "prune", "model": model, "revision": None, "commit": "d" * 40,
        "weights": (Weight(Coordinate(2, None, 3968, 7003), -1.9268),), "weights_from": "named by the user",
        "protocol": PROTOCOL, "outcome": Outcome(ARMS, ("It matters.",)), "published": published_of(model, "prune"),
        "notes": (),
    }  # fmt: skip
    return Result(**{**given, **changes})


def test_the_table_has_a_column_for_what_some_arm_has():
    lines = [line.split() for line in arms_table(ARMS).splitlines()]
    assert lines[0] == ["arm", "zeroed", "factor", "loss", "perplexity", "Δ", "loss", "recovered"]
    assert lines[2] == ["original", "0", "3.0000", "20.09", "+0.0000", "±0.0000"]
    assert lines[3] == ["zeroed", "1", "0", "5.0000", "148.4", "+2.0000", "±0.5000"]
    assert lines[4] == ["restored", "1", "0.5", "3.5000", "33.12", "+0.5000", "75.0%"]
    assert lines[5] == ["broken", "7,000", "infinite", "infinite", "infinite"]


def test_the_finding_comes_first_then_the_protocol_then_what_others_published():
    text = render_experiment(result())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines.index("It matters.") < lines.index("Published of this model, by others")
    assert "On wikitext2 (a/b at cccccccccccc): 8 windows of 1,024 tokens, each after a BOS token; 8,184" in text
    assert "5.67, 1,211" in text


def test_what_the_paper_claims_is_said_with_its_verdict():
    claims = (Claim("it matters", True, "2 is more than 1"), Claim("it is rare", None, "none was counted"))
    text = render_experiment(result(outcome=Outcome(ARMS, (), claims=claims)))
    assert "The claim is that it matters: here that holds, since 2 is more than 1." in text
    assert "here that cannot be told, since none was counted." in text
    assert result(outcome=Outcome(ARMS, (), claims=claims)).as_json()["claims"][0] == {
        "text": "it matters",
        "holds": True,
        "why": "2 is more than 1",
    }


def test_nothing_of_a_name_is_obeyed():
    assert "\x1b" not in render_experiment(result("evil\x1b[2J"))


def test_published_figures_are_of_that_model_alone_whoever_keeps_it():
    assert published_of("huggyllama/llama-7b", "prune") == published_of("x/Llama-7B@main", "prune")
    assert {
        "what": "mean of 7 zero-shot tasks, times 2",
        "value": "70.55",
        "source": "mengxiayu/LLMSuperWeight, notebook",
    } in (published_of("huggyllama/llama-7b", "scale"))
    assert published_of("me/llama-7b-chat", "prune") == ()
    for experiment in ("prune", "scale", "tokens"):
        assert all(each["source"] for each in published_of("huggyllama/llama-7b", experiment))


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (
            ARMS[1].cost,
            "moves the loss from 3.0000 (perplexity 20.09) to 5.0000 (perplexity 148.4), by +2.0000 ±0.5000 nats",
        ),
        (Cost(3.1, 0.1, -0.1, 0.3), "by +0.1000 ±0.2000 nats, which may be none"),
        (Cost(3.1, 0.1, None, None), "by +0.1000 nats"),
        (ARMS[3].cost, "makes the loss infinite"),
    ],
)
def test_a_cost_in_words(cost, said):
    assert change_of(cost).endswith(said)
