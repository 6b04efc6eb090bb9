"""The real sample model under some of the paper's experiments, against figures made with plain transformers."""

import json
from pathlib import Path

import pytest
import torch
from sample_model import sample_model_folder

from analyzer.analyze.running import open_runnable
from analyzer.base.records import Coordinate
from analyzer.experiments import tokens
from analyzer.experiments.controls.others import places_in
from analyzer.experiments.lab.asked import Settings
from analyzer.experiments.lab.conducting import conduct
from analyzer.experiments.lab.records import Arm, Experiment, Outcome
from analyzer.experiments.masks.criteria import Criterion
from analyzer.experiments.quantization.grid import Group, Rounding
from analyzer.experiments.quantization.matrices import Quantized, matrices_of
from analyzer.forward.edits import scaling, zeroing
from analyzer.model.weights import StoredWeights
from analyzer.source.folder import FolderSource

DATA = Path(__file__).parents[3] / "shared" / "data"
SAMPLE = sample_model_folder()
TRUTH = DATA / "experiments_truth.json"
pytestmark = pytest.mark.skipif(
    not (SAMPLE.exists() and TRUTH.exists()), reason="the sample model, or the measuring data, are not here"
)
WEIGHT = Coordinate(11, None, 507, 1229)


@pytest.fixture(scope="module")
def truth():
    torch.set_num_threads(2)
    yield json.loads(TRUTH.read_text("utf-8"))
    torch.set_num_threads(1)


@pytest.fixture
def joined(tmp_path):
    lines = (DATA / "wikitext2-raw-test.txt").read_text("utf-8").split("\n")[:-1]
    rows = [f"{line}\n" if line.strip() else "" for line in lines]
    (tmp_path / "joined.txt").write_text("\n\n".join(rows), "utf-8")
    return str(tmp_path / "joined.txt")


@pytest.mark.long
def test_its_losses_on_wikitext(truth, joined):
    """Two arms and no more: each costs a pass over 4,096 tokens."""
    arms = [Arm("zeroed", zeroing([WEIGHT]), 1), Arm("doubled", scaling({WEIGHT: 2.0}))]
    experiment = Experiment("arms", "Arms.", lambda lab: Outcome(lab.measure(arms), ()))
    settings = Settings(weights=(WEIGHT,), data=joined, windows=4, length=1024)
    found = conduct(FolderSource(SAMPLE), experiment, settings).as_json()
    assert found["protocol"]["tokens"] == 4 * 1023
    assert [arm["nll"] for arm in found["arms"]] == pytest.approx(
        [truth["nll"], truth["nll_zeroed"], truth["scale"]["2.0"]], abs=1e-4
    )


@pytest.mark.long
def test_its_next_tokens(truth):
    settings = Settings(weights=(WEIGHT,), prompts_data=str(DATA / "lambada-test.jsonl"), limit=60)
    found = conduct(FolderSource(SAMPLE), tokens.EXPERIMENT, settings).as_json()
    here = {each["token"]: (each["before"], each["after"]) for each in found["tokens"]}
    for token, expected in truth["tokens"]["before_after"].items():
        assert here[token] == pytest.approx(expected, abs=1e-5)


@pytest.mark.long
def test_its_matrices_rounded_whole(truth, joined):
    def run(lab):
        change = Quantized(Rounding(4, Group("tensor")), matrices_of(lab.runner), kept={})
        return Outcome(lab.measure([Arm("rounded", change=change)]), ())

    settings = Settings(weights=(WEIGHT,), data=joined, windows=2, length=1024)
    found = conduct(FolderSource(SAMPLE), Experiment("arms", "Arms.", run), settings).as_json()
    expected = truth["round_to_nearest"]
    assert [arm["nll"] for arm in found["arms"]] == pytest.approx(
        [expected["nll_first_2_windows"], expected["nll"]], abs=1e-4
    )


def test_where_its_super_weight_leaves_its_matrix(truth):
    runnable = open_runnable(FolderSource(SAMPLE))
    ((name, places),) = places_in(runnable.projections, [WEIGHT]).items()
    tensor = StoredWeights(runnable.checkpoint).read([name])[name]
    leaves, size = Criterion("magnitude").leaves_at(name, tensor, int(places[0]))
    assert (leaves, size) == (truth["leaves_at"]["value"], 576 * 1536)
