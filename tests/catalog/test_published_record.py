"""What others report: the whole table is in the catalog, apart from what is ours, and analyses say if they agree."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from published_record import CONFLICTS, NO_COORDINATE, SOURCES, main, read_table, reported_item

from analyzer.catalog.files import read_documents, validate
from analyzer.catalog.lookup import lookup, reported_in
from analyzer.catalog.report import render_reported

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "catalog"
TABLES = (("published_coordinates.csv", 108), ("published_more.csv", 32))
HEADER = "model_repo,revision,layer,row,col,value,source,source_url,notes\n"


def needed(table):
    path = ROOT.parent / "shared" / "data" / table
    if not path.exists():
        pytest.skip("the published tables are not here")
    return path


def key(model, revision, *places):
    return (model.partition(" ")[0], revision if revision not in ("", "unpinned") else None, *places)


@pytest.mark.parametrize(("table", "count"), TABLES)
def test_the_catalog_holds_every_row_of_the_tables(table, count):
    with needed(table).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    reported = [item for _, item in reported_in(read_documents(CATALOG))]
    found = {key(i["model"], i["revision"] or "", i["layer"], i["row"], i["col"]): i for i in reported}
    assert len(rows) == count
    for row in rows:
        places = (int(row[axis]) if row[axis] else None for axis in ("layer", "row", "col"))
        item = found[key(row["model_repo"], row["revision"], *places)]
        assert row["value"] == "" or item["value"] == float(row["value"])
        assert {name for name, *_ in SOURCES[row["source"]]} <= {source["name"] for source in item["sources"]}
        assert any(row["notes"].strip() in (source["note"] or "") for source in item["sources"])
    assert len(reported) >= len(rows)


def test_the_script_can_run_again_and_leaves_entries_alone(tmp_path, capsys):
    tables = [needed(table) for table, _ in TABLES]
    for path in CATALOG.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    for table, (_, count) in zip(tables, TABLES, strict=True):
        assert main([str(table), str(tmp_path)]) == 0
        assert f"{count} coordinates" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    for table in tables:
        assert main([str(table), str(tmp_path / "fresh")]) == 0
    assert validate(tmp_path / "fresh")[2] == []
    ours = json.loads(before["olmo.json"])["reported"]
    assert json.loads((tmp_path / "fresh" / "olmo.json").read_text())["reported"] == ours


def test_the_catalogs_own_record_keeps_both_sides_of_every_known_conflict():
    reported = [item for _, item in reported_in(read_documents(CATALOG))]
    assert validate(CATALOG)[2] == []
    for conflict in CONFLICTS:
        items = [item for item in reported if item["model"] == conflict.model and item["reason"] == conflict.reason]
        assert {(item["layer"], item["row"], item["col"]) for item in items} == conflict.coordinates
        for item in items:
            settled = (item["layer"], item["row"], item["col"]) in conflict.settled
            assert item["standing"] == ("reported" if settled else "disputed")
    assert {item["standing"] for item in reported} == {"reported", "disputed", "none_reported"}
    none = {item["model"]: item["reason"] for item in reported if item["standing"] == "none_reported"}
    assert none.keys() == {"bigscience/bloom-7b1", "vikhyatk/moondream2"}
    (census,) = (i for i in reported if i["model"] == "HuggingFaceTB/SmolLM2-135M")
    assert (census["layer"], census["row"], census["col"], census["sources"][0]["kind"]) == (11, 507, None, "census")
    experts = {i["expert"] for i in reported if i["model"] == "Qwen/Qwen3-30B-A3B"}
    assert experts == {68, 92, 82}


def test_a_further_source_is_in_the_record_and_ends_the_dispute_that_it_can():
    """By the rule of docs/catalog.md."""
    reported = [item for _, item in reported_in(read_documents(CATALOG))]
    theirs = [item for item in reported if "fabianandresgrob/super_weights" in {s["name"] for s in item["sources"]}]
    assert Counter(item["model"] for item in theirs) == {
        "allenai/OLMo-1B-0724-hf": 4,
        "allenai/OLMo-7B-0724-hf": 5,
        "meta-llama/Llama-2-7b-hf": 6,
        "meta-llama/Llama-3.1-8B": 8,
        "microsoft/Phi-3-mini-4k-instruct": 7,
        "mistralai/Mistral-7B-v0.1": 2,
    }
    assert sum(item["value"] is not None for item in theirs) == 26
    assert sum("doubtful" in item["sources"][-1]["note"] for item in theirs) == 2
    (file,) = {s["note"].partition("; file: ")[2] for s in theirs[0]["sources"] if s["name"].startswith("fabian")}
    model = theirs[0]["model"].replace("/", "_")
    assert file == f"fabianandresgrob/super_weights results/super_weights/comprehensive_analysis_{model}.json"

    def standings(model, *places):
        return [
            {i["standing"] for i in reported if (i["model"], i["layer"], i["row"], i["col"]) == (model, *place)}
            for place in places
        ]

    olmo = standings("allenai/OLMo-1B-0724-hf", (2, 1764, 8041), (1, 1764, 8041))
    assert olmo == [{"reported"}, {"disputed"}]
    llama = standings("meta-llama/Llama-3.1-8B", (1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427), (31, 788, 12111))
    assert llama == [*[{"disputed"}] * 3, {"reported"}]
    shown = " ".join(render_reported(lookup(read_documents(CATALOG), "OLMo-1B-0724-hf")[1]).split())
    assert "No longer disputed: 2,1764,8041: The paper says layer 1, its code layer 2." in shown
    assert "Disputed: 1,1764,8041: The paper says layer 1, its code layer 2." in shown


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("me/m,,1,2,3,,somebody,https://example.org,", "row 2: the source 'somebody' is not in SOURCES"),
        ("me/m,,1,2,3,,arctos v5,lea19019/arctos,CONFLICT: x", r"row 2: the conflict of me/m 1,2,3 is not in"),
        ("me/m,,,,,,arctos v5,lea19019/arctos,", "row 2: me/m has no coordinate, and the source is not in"),
        ("me/m,,one,2,3,,arctos v5,lea19019/arctos,", "row 2: invalid literal"),
        ("me/m,,1", "row 2: "),
        ("me/m,,1,-2,3,,arctos v5,lea19019/arctos,", "m.json: me/m: reported 0: row: -2 is less than the minimum"),
        ("me/m\x1b[2J,,1,2,3,,arctos v5,lea19019/arctos,", "has control or invisible characters"),
    ],
)
def test_a_table_that_the_script_does_not_understand_is_refused(tmp_path, capsys, row, fault):
    (tmp_path / "table.csv").write_text(f"{HEADER}{row}\n")
    assert main([str(tmp_path / "table.csv"), str(tmp_path / "catalog")]) == 1
    error = capsys.readouterr().err
    assert re.search(fault, error)
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert not list((tmp_path / "catalog").glob("*.json"))


def test_a_table_that_is_not_there_and_wrong_usage(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv"), str(tmp_path)]) == 1
    assert "No such file" in capsys.readouterr().err
    command = [sys.executable, ROOT / "tools" / "published_record.py"]
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_what_the_table_says_of_the_model_and_where_the_source_is_go_into_the_note(tmp_path):
    source = "arctos v5 detector (not in Table 2); Su et al. lists for LLaVA-1.5"
    row = {"model_repo": "me/m (inferred)", "revision": "unpinned", "layer": "1", "row": "2", "col": "3", "value": ""}
    item = reported_item({**row, "source": source, "source_url": "lea19019/arctos results/v5", "notes": "inert"})
    assert (item["model"], item["revision"], item["value"]) == ("me/m", None, None)
    assert [s["note"] for s in item["sources"]] == [
        "listed there for LLaVA-1.5",
        "not in Yu et al.'s Table 2; inert; inferred; file: lea19019/arctos results/v5",
    ]
    assert set(NO_COORDINATE) <= set(SOURCES)
    assert {kind for sources in SOURCES.values() for _, kind, *_ in sources} == {"paper", "code", "census", "notebook"}
    (tmp_path / "t.csv").write_text(HEADER)
    assert read_table(tmp_path / "t.csv") == []
