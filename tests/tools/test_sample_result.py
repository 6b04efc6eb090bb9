"""What is kept of the sample model's result."""

import json

import sample_result


def test_what_a_run_cost_is_not_kept(tmp_path, monkeypatch, capsys):
    """No two runs share it: the file would be another one each time."""
    printed = json.loads(sample_result.RESULT.read_text("utf-8"))
    text = sample_result.RESULT.read_text("utf-8")
    cost = {"passes": 9, "block_loads": 30, "bytes_loaded": 1, "seconds_waiting": 0.5, "seconds_computing": 1.5}
    (tmp_path / "printed.json").write_text(json.dumps({**printed, "cost": cost}))
    monkeypatch.setattr(sample_result, "RESULT", tmp_path / "kept.json")
    monkeypatch.setattr("sys.argv", ["sample_result.py", str(tmp_path / "printed.json")])
    sample_result.main()
    assert (tmp_path / "kept.json").read_text("utf-8") == text
    assert capsys.readouterr().out == sample_result.sample_of(printed).text + "\n"
