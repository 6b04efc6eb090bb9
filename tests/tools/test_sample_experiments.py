"""What is kept of the sample model's experiments, and how the guide shows it."""

import json

import pytest
import sample_experiments


@pytest.fixture
def kept(tmp_path, monkeypatch):
    arms = [
        {"name": "original", "nll": 3.0, "delta": 0.0, "delta_high": 0.0, "left": None},
        {"name": "zeroed", "nll": 5.0, "delta": 2.0, "delta_high": 2.25, "left": 0.5},
        {"name": "broken", "nll": None, "delta": None, "delta_high": None, "left": None},
    ]
    document = {
        "weights": [
            {"layer": 1, "expert": None, "row": 2, "col": 3, "value": 0.5, "criterion": criterion, "control": control}
            for control in (False, True)
            for criterion in ("magnitude", "wanda")
        ],
        "protocol": {
            "data": "a.txt",
            "bos": False,
            "dtype": "float32",
            "device": "cpu",
            "tokens": 4092,
            "windows": 4,
            "length": 1024,
            "runs": 7,
            "calibration": {"data": "a.txt", "windows": 2},
        },
        "arms": arms,
        "findings": ["It is so."],
        "claims": [{"text": "it breaks", "holds": None, "why": "a | b"}],
        "tokens": ["long"],
    }
    (tmp_path / "prune.json").write_text(json.dumps(document))
    passages = {"prompts": 40, "runs": 3}
    (tmp_path / "tokens.json").write_text(json.dumps({**document, "protocol": passages, "claims": []}))
    monkeypatch.setattr(sample_experiments, "RESULTS", tmp_path / "kept" / "sample.json")
    monkeypatch.setattr("sys.argv", ["sample_experiments.py", str(tmp_path)])
    (tmp_path / "kept").mkdir()
    sample_experiments.main()
    return json.loads((tmp_path / "kept" / "sample.json").read_text())


def test_what_is_shown_is_kept(kept):
    assert list(kept) == ["prune", "tokens"]
    assert set(kept["prune"]) == set(sample_experiments.KEPT)


def test_the_guide_shows_it(kept):
    assert sample_experiments.about() == (
        "Of the sample model, SmolLM2-135M-Instruct as a 4-bit file has it: 1,2,3 = +0.5. On a.txt: 4 windows of 1,024 "
        "tokens, no BOS token; 4,092 predicted; in float32 on cpu.\n"
    )
    assert sample_experiments.claims().splitlines()[2:] == [
        "| [prune](prune.md) | it breaks | cannot be told | a \\| b |",
    ]
    assert sample_experiments.sizes().splitlines()[2:] == [
        "| prune | 4 x 1,024 tokens, after 2 to calibrate on | 7 |",
        "| tokens | 40 passages | 3 |",
    ]
    assert sample_experiments.arms("prune", "left").splitlines() == [
        "| arm | left | loss | perplexity | Δ loss |",
        "| --- | --- | --- | --- | --- |",
        "| original |  | 3.0000 | 20.09 |  |",
        "| zeroed | 0.50 | 5.0000 | 148.4 | +2.0000 ±0.2500 |",
        "| broken |  | infinite | infinite | infinite |",
    ]
    assert sample_experiments.findings("prune") == "- It is so.\n"
