"""A survey of analyses: entries and rows are those of the job itself, a model that cannot run takes nothing along."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from models import PROMPT, TEXT, plant, random_llama, save

from analyzer.analyze.analyzing import analyze_model
from analyzer.catalog.files import read_documents
from analyzer.source.opening import open_model
from analyzer.verify.settings import VerifySettings


@pytest.mark.slow
def test_analyses_go_into_the_catalog(town, tmp_path):
    save(plant(random_llama()), tmp_path / "planted-1b")
    shutil.copytree(tmp_path / "planted-1b", tmp_path / "broken-1b")
    (tmp_path / "broken-1b" / "tokenizer.json").write_text("{")
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "list.txt").write_text("\n".join(f"{tmp_path / name}-1b" for name in ("planted", "broken")))
    out, catalog = tmp_path / "out", tmp_path / "catalog"
    options = [
        "--do",
        "analyze",
        "--device",
        "cpu",
        "--prompt",
        PROMPT,
        "--text",
        tmp_path / "text.txt",
        "--quiet",
        "--json",
    ]
    said = json.loads(town.run("run", tmp_path / "list.txt", "--out", out, *options))
    assert (said["done"], said["failed"]) == (1, {"unsupported": 1})
    assert json.loads(town.run("collect", out, "--catalog", catalog, "--json"))["entries"] == 1
    (document,) = read_documents(catalog).values()
    expected = analyze_model(
        open_model(tmp_path / "planted-1b"), VerifySettings(prompt=PROMPT, text=TEXT, device="cpu")
    )
    assert document["entries"] == [json.loads(json.dumps(expected.entry))]
    broken, *planted = pq.read_table(out / "survey.parquet").to_pylist()
    assert (broken["model"], broken["verdict"], broken["failure"]) == ("broken-1b", None, "unsupported")
    assert "tokenizer" in broken["line"]
    weights = expected.verified.super_weights
    assert [(r["layer"], r["row"], r["col"], r["status"], r["effect"], r["loss_zeroed"]) for r in planted] == [
        (w.layer, w.row, w.col, w.status, w.effect, w.loss_zeroed) for w in weights
    ]
    assert (1, 77, 31) in [(r["layer"], r["row"], r["col"]) for r in planted if r["status"] == "confirmed"]
    assert {(r["model"], r["verdict"], r["commit"]) for r in planted} == {
        ("planted-1b", "found", expected.entry["commit"])
    }
