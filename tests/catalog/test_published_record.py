"""What others report: the whole table is in the catalog, apart from what is ours, and analyses say if they agree."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from commands import superweight
from models import COL, LAYER, PROMPT, ROW, TEXT, plant, random_llama, save
from published_record import CONFLICTS, NO_COORDINATE, SOURCES, main, read_table, reported_item

from analyzer.catalog.export import EXPERTS, FAMILY_TYPES, MODULES, OTHER_CODE, export_recipe, module_of
from analyzer.catalog.files import read_documents, save_reported, validate
from analyzer.catalog.lookup import coordinates_of, reported_in, reported_on
from analyzer.catalog.report import render_agreement, render_catalog
from analyzer.catalog.reported import agreement, merged

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "catalog"
TABLE = ROOT.parent / "shared" / "data" / "published_coordinates.csv"
HEADER = "model_repo,revision,layer,row,col,value,source,source_url,notes\n"
SOURCE = {"name": "A paper", "kind": "paper", "url": "https://example.org/p", "note": None}
ITEM = {
    "model": "me/model-1b", "revision": None, "layer": 1, "expert": None, "row": 2, "col": 3, "value": 4.5,
    "standing": "reported", "reason": None, "sources": [SOURCE],
}  # fmt: skip
NONE = {
    **ITEM, "layer": None, "row": None, "col": None, "value": None, "standing": "none_reported", "reason": "none found",
}  # fmt: skip

needs_table = pytest.mark.skipif(not TABLE.exists(), reason="the published table is not here")


def key(model, revision, *places):
    return (model.partition(" ")[0], revision if revision not in ("", "unpinned") else None, *places)


@needs_table
def test_the_catalog_holds_every_row_of_the_table():
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    reported = [item for _, item in reported_in(read_documents(CATALOG))]
    found = {key(i["model"], i["revision"] or "", i["layer"], i["row"], i["col"]): i for i in reported}
    assert len(rows) == 108
    for row in rows:
        places = (int(row[axis]) if row[axis] else None for axis in ("layer", "row", "col"))
        item = found[key(row["model_repo"], row["revision"], *places)]
        assert item["value"] == (float(row["value"]) if row["value"] else None)
        assert {name for name, *_ in SOURCES[row["source"]]} <= {source["name"] for source in item["sources"]}
        assert any(row["notes"].strip() in (source["note"] or "") for source in item["sources"])
    assert len(reported) >= len(rows)


@needs_table
def test_the_script_can_run_again_and_leaves_entries_alone(tmp_path, capsys):
    for path in CATALOG.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert main([str(TABLE), str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    assert "108 coordinates" in capsys.readouterr().out
    assert main([str(TABLE), str(tmp_path / "fresh")]) == 0
    assert validate(tmp_path / "fresh")[2] == []
    ours = json.loads(before["olmo.json"])["reported"]
    assert json.loads((tmp_path / "fresh" / "olmo.json").read_text())["reported"] == ours


def test_the_catalogs_own_record_keeps_both_sides_of_every_known_conflict():
    reported = [item for _, item in reported_in(read_documents(CATALOG))]
    assert validate(CATALOG)[2] == []
    for conflict in CONFLICTS:
        items = [item for item in reported if item["model"] == conflict.model and item["reason"] == conflict.reason]
        assert {(item["layer"], item["row"], item["col"]) for item in items} == conflict.coordinates
        assert {item["standing"] for item in items} == {"disputed"}
    assert {item["standing"] for item in reported} == {"reported", "disputed", "none_reported"}
    none = {item["model"]: item["reason"] for item in reported if item["standing"] == "none_reported"}
    assert none.keys() == {"bigscience/bloom-7b1", "vikhyatk/moondream2"}
    (census,) = (i for i in reported if i["model"] == "HuggingFaceTB/SmolLM2-135M")
    assert (census["layer"], census["row"], census["col"], census["sources"][0]["kind"]) == (11, 507, None, "census")
    experts = {i["expert"] for i in reported if i["model"] == "Qwen/Qwen3-30B-A3B"}
    assert experts == {68, 92, 82}


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


def test_merging_loses_nothing_and_settles():
    other = {**SOURCE, "name": "Another"}
    better = {**SOURCE, "note": "Better."}
    once = merged([{**ITEM, "value": None}], [{**ITEM, "sources": [other, better]}, {**ITEM, "revision": "v2"}])
    assert [(i["revision"], i["value"], i["sources"]) for i in once] == [
        (None, 4.5, [better, other]), ("v2", 4.5, [SOURCE]),
    ]  # fmt: skip
    assert merged(once, once) == once

    disputed = merged([ITEM], [{**ITEM, "value": -1.0, "sources": [other]}])
    assert [(i["standing"], i["value"], i["reason"]) for i in disputed] == [
        ("disputed", 4.5, "The sources give two values: 4.5 and -1.0."),
    ]  # fmt: skip
    assert disputed[0]["sources"] == [SOURCE, other]
    assert merged(disputed, [ITEM]) == disputed


def weight(layer, row, col, status="confirmed"):
    return {"layer": layer, "expert": None, "row": row, "col": col, "status": status}


@pytest.mark.parametrize(
    ("item", "outcome", "sentence"),
    [
        (ITEM, ("confirmed", True), "1,2,3: confirmed here (they name no revision)."),
        ({**ITEM, "revision": "a" * 40}, ("confirmed", True), "1,2,3: confirmed here."),
        (
            {**ITEM, "revision": "b" * 40},
            ("confirmed", True),
            "1,2,3: confirmed here (theirs is revision bbbbbbbbbbbb).",
        ),
        ({**ITEM, "col": 4, "revision": "a" * 40}, (None, False), "1,2,4: not seen here."),
        (
            {**ITEM, "col": 9, "revision": "a" * 40},
            ("coincident", False),
            "1,2,9: not confirmed here: it sits on the channel, but zeroing it does not take the activation away.",
        ),
        (
            {**ITEM, "col": None, "revision": "a" * 40},
            ("confirmed", True),
            "1,2,any: confirmed here, by 1,2,3 and 1,2,5.",
        ),
        ({**ITEM, "row": 7, "col": None, "revision": "a" * 40}, (None, False), "1,7,any: not seen here."),
        (NONE, (None, False), "Reported by A paper: none found; but found here."),
        ({**NONE, "reason": "not published"}, (None, None), "not published; nothing to agree with."),
    ],
)
def test_an_analysis_says_whether_it_agrees(item, outcome, sentence):
    weights = [weight(1, 2, 3), weight(1, 2, 5), weight(1, 2, 9, "coincident")]
    (each,) = agreement({"commit": "a" * 40, "verdict": "found", "super_weights": weights}, [item])
    assert (each["here"], each["agrees"]) == outcome
    assert sentence in " ".join(render_agreement([each]).split())


def test_none_found_here_either_and_one_sentence_for_a_group():
    nothing = {"commit": "a" * 40, "verdict": "none", "super_weights": []}
    assert agreement(nothing, [NONE])[0]["agrees"] is True
    assert render_agreement(agreement(nothing, [NONE])) == "Reported by A paper: none found; none here either."
    at = {**ITEM, "revision": "a" * 40}
    text = render_agreement(agreement(nothing, [{**at, "col": col} for col in range(6)]))
    assert text == ("Reported by A paper: 1,2,0; 1,2,1; 1,2,2; 1,2,3 and 2 more: not seen here.")
    assert render_agreement([]) == ""


def test_analyze_of_a_model_with_a_published_record(tmp_path):
    save(plant(random_llama()), tmp_path / "planted-1b")
    (tmp_path / "text.txt").write_text(TEXT)
    seen = {**ITEM, "model": "me/Planted-1B", "layer": LAYER, "row": ROW, "col": COL, "value": None}
    save_reported(tmp_path / "c", "planted", [seen, {**seen, "col": COL + 1}])
    command = ["analyze", tmp_path / "planted-1b", "--prompt", PROMPT, "--text", tmp_path / "text.txt"]
    result = superweight(*command, "--catalog", tmp_path / "c")
    assert f"Reported by A paper: {LAYER},{ROW},{COL}: confirmed here (they name no revision)." in result.stdout
    assert f"Reported by A paper: {LAYER},{ROW},{COL + 1}: not seen here (they name no revision)." in result.stdout
    found = json.loads(superweight(*command, "--catalog", tmp_path / "c", "--json").stdout)
    assert [each["agrees"] for each in found["agrees_with_reported"]] == [True, False]
    assert [item["col"] for item in reported_on(read_documents(tmp_path / "c"), "planted-1b")] == [COL, COL + 1]
    assert reported_on(read_documents(tmp_path / "c"), "you/planted-1b") == []
    shown = superweight("catalog", "show", "ME/planted-1b", "--catalog", tmp_path / "c")
    assert "Reported by others, not verified here" in shown.stdout
    assert "confirmed" not in shown.stdout


def test_list_and_show_keep_what_others_report_apart():
    listed = superweight("catalog", "list", "--catalog", CATALOG).stdout
    ours, others = listed.split("Reported by others, not verified here")
    assert "Mistral-7B" not in ours
    assert "SmolLM2-135M-Instruct-Q4_1" not in others
    assert max(map(len, listed.splitlines())) <= 100

    shown = superweight("catalog", "show", "MISTRAL-7b-v0.1", "--catalog", CATALOG).stdout
    for fact in ("Reported by others, not verified here", "2070  7310", "Yu et al. 2024", "ppl 5.69->8108", "any"):
        assert fact in shown
    assert "verified " not in shown.replace("not verified here", "")
    disputed = " ".join(superweight("catalog", "show", "OLMo-1B-0724-hf", "--catalog", CATALOG).stdout.split())
    assert "Disputed: 1,1764,8041 and 2,1764,8041: The paper says layer 1" in disputed
    nothing = superweight("catalog", "show", "bigscience/bloom-7b1", "--catalog", CATALOG).stdout
    assert "No coordinate: none found." in nothing

    both = json.loads(superweight("catalog", "show", "smollm2-135m", "--catalog", CATALOG, "--json").stdout)
    assert (both["entries"], both["reported"][0]["standing"]) == ([], "reported")
    everything = json.loads(superweight("catalog", "list", "--catalog", CATALOG, "--json").stdout)
    assert len(everything["reported"]) >= 108

    unknown = superweight("catalog", "show", "mistral/Mistral-7B", "--catalog", CATALOG)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "did you mean mistralai/Mistral-7B-v0.1" in unknown.stderr


def test_validate_counts_both():
    counts = json.loads(superweight("catalog", "validate", "--catalog", CATALOG, "--json").stdout)
    assert counts["valid"] is True
    assert counts["reported"] >= 108


def test_export_of_coordinates_and_of_a_recipe():
    command = ["catalog", "export", "mistral-7b-v0.1", "--catalog", CATALOG, "--format"]
    exported = json.loads(superweight(*command, "json").stdout)
    (weight,) = (c for c in exported["coordinates"] if c["col"] is not None)
    assert (weight["layer"], weight["row"], weight["col"], weight["value"]) == (1, 2070, 7310, -0.2734375)
    assert (weight["standing"], weight["module"]) == ("reported", "model.layers.1.mlp.down_proj")
    rows = list(csv.DictReader(superweight(*command, "csv").stdout.splitlines()))
    assert [(row["row"], row["col"]) for row in rows] == [("2070", ""), ("2070", "7310")]
    recipe = superweight(*command, "llm-compressor").stdout
    modifier = yaml.safe_load(recipe)["quantization_stage"]["quantization_modifiers"]["QuantizationModifier"]
    assert modifier["ignore"] == ["lm_head", "model.layers.1.mlp.down_proj"]
    assert "cannot express single weights" in recipe


def test_export_can_be_narrowed():
    def layers(*options):
        command = ["catalog", "export", "SmolLM2-135M-Instruct-Q4_1", "--catalog", CATALOG, "--format", "json"]
        return [c["layer"] for c in json.loads(superweight(*command, *options).stdout)["coordinates"]]

    assert set(layers("--critical")) < set(layers("--standing", "verified"))
    assert layers("--standing", "disputed") == []
    command = ["catalog", "export", "mistral-7b-V0.1", "--catalog", CATALOG, "--standing", "verified", "--format"]
    for form, nothing in (
        ("json", '{\n  "model": "mistralai/Mistral-7B-v0.1",\n  "coordinates": []\n}\n'),
        ("csv", None),
    ):
        done = superweight(*command, form)
        assert done.returncode == 0
        assert done.stderr == "warning: no coordinate of that standing: 2 reported, 0 disputed\n"
        assert done.stdout == nothing if nothing else done.stdout.count("\n") == 1
    command = ["catalog", "export", "bigscience/bloom-7b1", "--catalog", CATALOG, "--format", "llm-compressor"]
    assert "knows no such coordinate of bigscience/bloom-7b1" in superweight(*command).stderr
    command[2] = "DNABERT-2-117M"
    assert "has a name that this tool does not know: use --format json" in superweight(*command).stderr


def test_experts_and_models_of_other_code():
    (first, *_) = coordinates_of("Qwen3-30B-A3B", folder=CATALOG)
    assert module_of(first) == "model.layers.1.mlp.experts.68.down_proj"
    for model in OTHER_CODE:
        assert {module_of(each) for each in coordinates_of(model, folder=CATALOG)} == {None}
    assert set(FAMILY_TYPES.values()) <= set(MODULES)
    assert all("{expert}" in name for name in EXPERTS.values())
    recipe = export_recipe("m", coordinates_of("aya-expanse-8b", folder=CATALOG))
    assert "# reported: (1162, 1079), (1162, 1666), (2619, 1079), (2619, 1666), 6 more\n" in recipe
    assert "inert" not in recipe


def test_a_recipe_names_all_that_is_critical():
    known = coordinates_of("SmolLM2-135M-Instruct-Q4_1", folder=CATALOG)
    (first, *_) = (each for each in known if each.effect == "critical")
    many = [replace(first, row=row) for row in range(30)]
    beside = replace(first, row=0, standing="disputed", effect=None)
    recipe = export_recipe("me/" + "m" * 90, [beside, *known, *many, beside])
    comments = [line for line in recipe.splitlines() if "# " in line]
    assert max(map(len, comments)) <= 100
    assert "# Of these 58, 22 are inert: zeroing them is harmless, and --critical leaves them out.\n" in recipe
    text = " ".join(recipe.replace("        # ", "").split())
    them = ", ".join(f"({row}, {first.col})" for row in range(30))
    assert f"verified, critical: (260, 90), (507, 90), (507, 430), {them} verified, inert: (260, 430) - model" in text
    assert "verified, critical: (507, 1229), (507, 1487) verified, inert: (14, 1229), (17, 1229), (50, 1229)" in text
    assert text.endswith("(50, 1487), 14 more - model.layers.11.mlp.down_proj")
    assert "disputed" not in recipe  # of a place that this tool has verified
    ignored = yaml.safe_load(recipe)["quantization_stage"]["quantization_modifiers"]["QuantizationModifier"]["ignore"]
    assert ignored == ["lm_head", *(f"model.layers.{layer}.mlp.down_proj" for layer in (1, 2, 8, 9, 11))]


def test_an_export_calls_a_model_what_the_catalog_calls_it(tmp_path):
    def exported(model):
        done = superweight("catalog", "export", model, "--catalog", tmp_path, "--format", "json")
        return json.loads(done.stdout)["model"]

    save_reported(tmp_path, "x", [ITEM, {**ITEM, "revision": "b" * 40}])
    assert exported("MODEL-1b") == exported("model-1b@bbb") == "me/model-1b"
    save_reported(tmp_path, "x", [{**ITEM, "model": "you/Model-1B"}])
    assert exported("model-1b") == ["me/model-1b", "you/Model-1B"]
    assert exported("ME/model-1b") == "me/model-1b"


def test_lists_have_a_model_once_in_order_and_fit():
    of = {"model": "o" * 40 + "/" + "m" * 60, "revision": "c" * 40}
    items = [
        ("b", {**ITEM, "model": "z/x"}), ("a" * 64, {**ITEM, **of}), ("a" * 64, {**ITEM, **of, "standing": "disputed"}),
        ("a" * 64, {**NONE, **of}), ("b", {**ITEM, "model": "A/x", "col": None}), ("b", {**NONE, "model": "A/x"}),
    ]  # fmt: skip
    weights = [weight(31, 16383, col) for col in (65535, 5)] + [weight(1, 2, 9, "coincident")]
    losses = {"effect": "inert", "loss": 3.0, "loss_zeroed": 3.1}
    weights = [{**weights[0], **losses}, {**weights[1], **losses, "loss": 2.0, "loss_zeroed": 2.9}, weights[2]]
    weights[2] |= {"effect": "critical", "loss": 0.0, "loss_zeroed": 9.0}
    known = {"model": of["model"], "commit": f"sha256:{'a' * 64}", "super_weights": weights}
    ours, title, others = render_catalog([("a" * 64, known)], items).partition("Reported by others, not verified here")
    assert title and max(map(len, (ours + others).splitlines())) <= 100
    assert ours.splitlines()[2].split()[-3:] == ["2", "0", "31,16383,5"]  # no coincident one is counted
    rows = [line.split("  ") for line in others.strip().splitlines()[2:]]
    rows = [[cell.strip() for cell in row if cell] for row in rows]
    assert [row[1][:3] for row in rows] == ["ooo", "A/x", "z/x"]
    assert [row[2:] for row in rows] == [
        ["reported, disputed, none", "2", "0", "1"], ["reported, none", "0", "1", "1"], ["reported", "1", "0", "1"],
    ]  # fmt: skip


@pytest.mark.parametrize("model_type", MODULES)
def test_the_modules_are_called_so_in_transformers(model_type):
    config = transformers.AutoConfig.for_model(model_type)
    loader = transformers.AutoModelForCausalLM
    if model_type in transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        loader = transformers.AutoModelForImageTextToText
    elif "bert" in model_type:
        loader = transformers.AutoModelForMaskedLM
    with torch.device("meta"):
        modules = dict(loader.from_config(config).named_modules())
    assert isinstance(modules[MODULES[model_type].format(layer=1)], torch.nn.Linear)
