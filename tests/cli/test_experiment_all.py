"""`superweight experiment all`: every experiment into a folder, failures as lines, the page, the same again."""

import importlib.util
import json

import pytest
from commands import fails

from analyzer.cli.experiment import EXPERIMENTS

pytestmark = pytest.mark.early

NAMES = [each.name for each in EXPERIMENTS]


@pytest.fixture
def run(here, planted, tmp_path):
    """Run all experiments on the planted model, in seconds."""
    passages = tmp_path / "passages.txt"
    passages.write_text("apple banana pear apple\npear banana apple\n" * 4)

    def run_it(*more, out=tmp_path / "out", text=planted / "text.txt"):
        data = ("--data", text, "--prompts-data", passages, "--windows", "4", "--length", "16")
        return here("experiment", "all", planted, "--out", out, "--weight", "1,77,31", *data, "--quiet", *more)

    return run_it


def test_all_goes_into_a_folder_and_again_the_same(run, tmp_path):
    result = run()
    assert (result.stderr, result.returncode) == ("", 0)
    assert "prune: The claim is that zeroing a single super weight" in " ".join(result.stdout.split())
    assert f"All of it is in {tmp_path / 'out' / 'index.html'}" in " ".join(result.stdout.split())
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"index.html", *(f"{name}.{kind}" for name in NAMES for kind in ("json", "png"))}
    documents = {name: json.loads(files[f"{name}.json"]) for name in NAMES}
    assert all(document["experiment"] == name for name, document in documents.items())
    assert documents["bits"]["protocol"]["windows"] == 2
    assert documents["prune"]["protocol"]["windows"] == 4
    page = files["index.html"].decode("utf-8")
    assert "planted-1b" in page
    assert "failed" not in page.partition("</style>")[2]
    assert page.count("data:image/png;base64,") == len(NAMES)
    summary = json.loads(run("--json").stdout)
    assert {each["experiment"]: each["claims"] for each in summary["experiments"]} == {
        name: document["claims"] for name, document in documents.items()
    }
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


def test_an_experiment_that_fails_is_a_line_and_the_others_go_on(run, tmp_path):
    (tmp_path / "short.txt").write_text("apple")
    result = run(text=tmp_path / "short.txt")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[0] == (
        "error: prune: the text short.txt is too short for a window of 16 tokens: give a longer one (--data), or a "
        "smaller --length"
    )
    assert len(lines) == sum(each.needs == "text" for each in EXPERIMENTS)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "tokens.json", "tokens.png"}
    assert "This experiment failed: the text short.txt is too short" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is here")
def test_tasks_are_added_where_they_are_asked_for(run, tmp_path):
    (tmp_path / "short.txt").write_text("apple")  # of which the others make short work
    result = run("--tasks", text=tmp_path / "short.txt")
    assert result.returncode == 1
    assert "error: tasks: tasks needs lm-evaluation-harness: pip install 'lm-eval>=0.4.9'\n" in result.stderr
    assert (tmp_path / "out" / "tokens.json").exists()


def test_what_no_experiment_can_do_without_is_one_line(run, tmp_path):
    fails(run("--weight", "1,999,0"), "has no weight 1,999,0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    fails(run(out=tmp_path / "full"), "cannot write into", "thesis.txt")
