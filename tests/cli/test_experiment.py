"""`superweight experiment`: what it prints, what it draws, and bad input in one line."""

import json

import pyarrow
import pytest
from commands import fails
from models import TEXT
from pyarrow import parquet


@pytest.fixture
def prune(here, planted):
    """Run `experiment prune` on the planted model, in seconds."""
    options = ("--weight", "1,77,31", "--data", planted / "text.txt", "--length", "16", "--others", "random:5")

    def run(*more, name="prune"):
        own = options if name == "prune" else options[:-2]
        return here("experiment", name, planted, *own, "--quiet", *more)

    return run


def test_prune_prints_its_findings_and_a_table(prune):
    result = prune()
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("planted-1b")
    assert "prune: 1,77,31 = +2 (named by the user)." in lines
    assert any(line.startswith("others: random:5") for line in lines)
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", ["prune", "scale", "quantize", "bits"])
def test_json_is_one_object_and_a_picture_is_drawn_and_both_are_the_same_again(prune, tmp_path, name):
    first, again = (prune("--json", "--plot", tmp_path / file, name=name) for file in ("a.png", "b.png"))
    assert (first.returncode, again.returncode) == (0, 0)
    document = json.loads(first.stdout)
    assert {"experiment", "model", "commit", "weights", "protocol", "arms"} <= document.keys()
    assert document["experiment"] == name
    assert {"name", "zeroed", "nll", "perplexity", "delta", "delta_low", "delta_high", "recovered"} <= document["arms"][
        1
    ].keys()
    assert again.stdout == first.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_model_and_text_of_the_hub_are_pinned_and_said(here, hub, planted, tmp_path):
    path = tmp_path / "set" / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"text": ["", TEXT + "\n", TEXT]}), path)
    text_commit, model_commit = (
        hub.add("datasets/Salesforce/wikitext", tmp_path / "set"),
        hub.add("me/planted", planted),
    )
    result = here("experiment", "scale", "me/planted", "--weight", "1,77,31", "--length", "16", "--quiet", "--json")
    document = json.loads(result.stdout)
    assert (document["model"], document["commit"]) == ("me/planted", model_commit)
    protocol = document["protocol"]
    assert (protocol["data"], protocol["repository"], protocol["commit"]) == (
        "wikitext2",
        "Salesforce/wikitext",
        text_commit,
    )
    assert protocol["windows"] == 8


def test_bad_input_is_one_line(here, prune, planted, tmp_path):
    fails(prune("--weight", "1,999,0"), "has no weight 1,999,0")
    fails(prune("--data", tmp_path / "nowhere.txt"), "cannot read", "nowhere.txt")
    (tmp_path / "short.txt").write_text("apple banana")
    fails(prune("--data", tmp_path / "short.txt"), "short.txt is too short for a window of 16 tokens")
    fails(prune("--data", tmp_path), "cannot read", "no such file")
    fails(prune("--length", "100"), "64 positions", "--length")
    fails(prune("--others", "global:9999999999"), "--others global:9999999999", "weights there")
    fails(prune("--bos", "--data", tmp_path / "short.txt"), "too short")
    fails(prune("--plot", tmp_path / "a.jpg"), "only PNG")
    (tmp_path / "t.txt").write_text(TEXT)
    fails(here("experiment", "prune", tmp_path / "none", "--data", tmp_path / "t.txt"), "there is no folder")


def test_quantize_prints_a_verdict_and_tells_statics_alone(prune, tmp_path):
    own = ("--bits", "4", "--group", "tensor", "--activations", "none")
    lines = prune(*own, name="quantize").stdout.splitlines()
    assert any(line.startswith("Protecting the weights ") for line in lines)
    assert any(line.startswith("W4 asym tensor, z ") for line in lines)
    assert max(map(len, lines)) <= 100
    static = prune(*own, "--static", "--data", tmp_path / "nowhere.txt", name="quantize")
    assert "nothing was run" in static.stdout
    assert "no-op in 1 of 1 cases" in static.stdout
    fails(prune("--group", "100", name="quantize"), "--group 100 does not divide", "128 x")
    fails(prune("--calibrate", tmp_path / "nowhere.txt", name="quantize"), "cannot read", "nowhere.txt")


@pytest.mark.parametrize(
    "arguments",
    [("--group", "flat"), ("--bits", "1"), ("--bits", "x"), ("--activations", "int8"), ("--grid", "huge")],
)
def test_wrong_settings_of_quantize_exit_with_2(prune, arguments):
    result = prune(*arguments, name="quantize")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--others", "all"),
        ("--others", "global:-3"),
        ("--others", "per-tensor:2"),
        ("--restore", "many"),
        ("--restore", "0"),
        ("--data", "two\nlines"),
        ("--windows", "0"),
        ("--weight", "1,2"),
    ],
)
def test_wrong_usage_exits_with_2(prune, arguments):
    result = prune(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
