"""The commands that list, show, validate and export a catalog."""

import csv
import json
from pathlib import Path

import yaml
from catalogs import REPORTED
from commands import fails

from analyzer.catalog.files import save_reported

CATALOG = Path(__file__).parents[2] / "catalog"


def test_list_and_show_keep_what_others_report_apart(here):
    listed = here("catalog", "list", "--catalog", CATALOG).stdout
    ours, others = listed.split("Reported by others, not verified here")
    assert "Mistral-7B" not in ours
    assert "SmolLM2-135M-Instruct-Q4_1" not in others
    assert max(map(len, listed.splitlines())) <= 100

    shown = here("catalog", "show", "MISTRAL-7b-v0.1", "--catalog", CATALOG).stdout
    for fact in ("Reported by others, not verified here", "2070  7310", "Yu et al. 2024", "ppl 5.69->8108", "any"):
        assert fact in shown
    assert "verified " not in shown.replace("not verified here", "")
    disputed = " ".join(here("catalog", "show", "OLMo-1B-0724-hf", "--catalog", CATALOG).stdout.split())
    assert "Disputed: 1,1764,8041: The paper says layer 1" in disputed
    nothing = here("catalog", "show", "bigscience/bloom-7b1", "--catalog", CATALOG).stdout
    assert "No coordinate: none found." in nothing

    both = json.loads(here("catalog", "show", "smollm2-135m", "--catalog", CATALOG, "--json").stdout)
    assert (both["entries"], both["reported"][0]["standing"]) == ([], "reported")
    everything = json.loads(here("catalog", "list", "--catalog", CATALOG, "--json").stdout)
    assert len(everything["reported"]) >= 108

    unknown = here("catalog", "show", "mistral/Mistral-7B", "--catalog", CATALOG)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "did you mean mistralai/Mistral-7B-v0.1" in unknown.stderr


def test_validate_counts_both(here):
    counts = json.loads(here("catalog", "validate", "--catalog", CATALOG, "--json").stdout)
    assert counts["valid"] is True
    assert counts["reported"] >= 108


def test_export_of_coordinates_and_of_a_recipe(here):
    command = ["catalog", "export", "mistral-7b-v0.1", "--catalog", CATALOG, "--format"]
    exported = json.loads(here(*command, "json").stdout)
    (weight,) = (c for c in exported["coordinates"] if c["col"] is not None and c["commit"])
    assert (weight["layer"], weight["row"], weight["col"], weight["value"]) == (1, 2070, 7310, -0.2734375)
    assert (weight["standing"], weight["module"]) == ("reported", "model.layers.1.mlp.down_proj")
    rows = list(csv.DictReader(here(*command, "csv").stdout.splitlines()))
    assert [(row["row"], row["col"]) for row in rows] == [("53", "2187"), ("2070", ""), ("2070", "7310")]
    recipe = here(*command, "llm-compressor").stdout
    modifier = yaml.safe_load(recipe)["quantization_stage"]["quantization_modifiers"]["QuantizationModifier"]
    assert modifier["ignore"] == ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.31.mlp.down_proj"]
    assert "cannot express single weights" in recipe


def test_exports_for_quantizers_of_an_entry_with_modules_and_ranks(here):
    command = ["catalog", "export", "SmolLM2-135M-Instruct-Q4_1", "--catalog", CATALOG, "--critical", "--format"]
    rules = here(*command, "gptqmodel")
    layers = (2, 9, 11)
    assert list(json.loads(rules.stdout)) == [rf"-:^model\.layers\.{layer}\.mlp\.down_proj$" for layer in layers]
    assert "note: Of 6 weights as stored, 3 are the largest of their row" in rules.stderr
    config = json.loads(here(*command, "torchao").stdout)["_data"]["fqn_to_config"]
    assert [name for name in config if config[name] is None][1:] == [
        f"model.layers.{layer}.mlp.down_proj" for layer in layers
    ]
    lines = here(*command, "llama.cpp").stdout.splitlines()
    assert lines == [rf"^blk\.{layer}\.ffn_down\.weight$=f16" for layer in layers]
    command = ["catalog", "export", "mistral-7b-v0.1", "--catalog", CATALOG, "--format"]
    for form, nothing in (("channels", "massive channels"), ("prefix", "prefix")):
        done = here(*command, form)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"has no {nothing} of mistralai/Mistral-7B-v0.1: run `superweight analyze`" in done.stderr
    assert here(*command, "llama.cpp").stdout.startswith("^blk\\.1\\.ffn_down\\.weight$=f16\n")
    command[2] = "mistral-7c"
    assert "has no entry for mistral-7c" in here(*command, "torchao").stderr
    for empty in ("", " ", "@abc"):
        command[2] = empty
        fails(here(*command, "torchao"), "the model's name is empty")


def test_export_can_be_narrowed(here):
    def layers(*options):
        command = ["catalog", "export", "SmolLM2-135M-Instruct-Q4_1", "--catalog", CATALOG, "--format", "json"]
        return [c["layer"] for c in json.loads(here(*command, *options).stdout)["coordinates"]]

    assert set(layers("--critical")) < set(layers("--standing", "verified"))
    assert layers("--standing", "disputed") == []
    command = ["catalog", "export", "mistral-7b-V0.1", "--catalog", CATALOG, "--standing", "verified", "--format"]
    for form, nothing in (
        ("json", '{\n  "model": "mistralai/Mistral-7B-v0.1",\n  "coordinates": []\n}\n'),
        ("csv", None),
    ):
        done = here(*command, form)
        assert done.returncode == 0
        assert done.stderr.startswith("warning: no coordinate of that standing: 0 verified")
        assert done.stdout == nothing if nothing else done.stdout.count("\n") == 1
    for form in ("llm-compressor", "gptqmodel", "torchao", "llama.cpp"):
        said = "no coordinate of that standing: 0 verified, 0 of them critical, 4 reported, 0 disputed: "
        hint = "leave --standing and --critical out, or verify it yourself with `superweight analyze`"
        fails(here(*command, form), f"mistralai/Mistral-7B-v0.1: {said}{hint}")
    command = ["catalog", "export", "bigscience/bloom-7b1", "--catalog", CATALOG, "--format", "llm-compressor"]
    fails(here(*command), "bigscience/bloom-7b1: no coordinate is known, so that there is nothing to protect")
    command[2] = "DNABERT-2-117M"
    assert "has a name that this tool does not know: use --format json" in here(*command).stderr


def test_an_export_calls_a_model_what_the_catalog_calls_it(here, tmp_path):
    def exported(model):
        done = here("catalog", "export", model, "--catalog", tmp_path, "--format", "json")
        return json.loads(done.stdout)["model"]

    save_reported(tmp_path, "x", [REPORTED, {**REPORTED, "revision": "b" * 40}])
    assert exported("MODEL-1b") == exported("model-1b@bbb") == "me/model-1b"
    save_reported(tmp_path, "x", [{**REPORTED, "model": "you/Model-1B"}])
    assert exported("model-1b") == ["me/model-1b", "you/Model-1B"]
    assert exported("ME/model-1b") == "me/model-1b"


def test_an_export_without_coordinates_refuses_what_selects_them(here):
    command = ["catalog", "export", "SmolLM2-135M-Instruct-Q4_1", "--catalog", CATALOG, "--format"]
    for form, given in (("channels", ["--critical"]), ("prefix", ["--standing", "verified"])):
        done = here(*command, form, *given)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{given[0]} is of coordinates and changes nothing of --format {form}: leave it out" in done.stderr
