"""Coordinates as quantizers take them."""

from dataclasses import replace
from pathlib import Path

import yaml

from analyzer.catalog.exports.coordinates import selected
from analyzer.catalog.exports.modules import EXPERTS, FAMILY_TYPES, MODULES, OTHER_CODE, module_of
from analyzer.catalog.exports.recipe import export_recipe
from analyzer.catalog.lookup import coordinates_of

CATALOG = Path(__file__).parents[2] / "catalog"


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
    assert "# Inert: 22 of these 58. Zeroing those is harmless, and --critical leaves them out.\n" in recipe
    text = " ".join(recipe.replace("        # ", "").split())
    them = ", ".join(f"({row}, {first.col})" for row in range(30))
    assert f"verified, critical: (260, 90), (507, 90), (507, 430), {them} verified, inert: (260, 430) - model" in text
    assert "verified, critical: (507, 1229), (507, 1487) verified, inert: (14, 1229), (17, 1229), (50, 1229)" in text
    assert text.endswith("(50, 1487), 14 more - model.layers.11.mlp.down_proj")
    assert "disputed" not in recipe  # of a place that this tool has verified
    ignored = yaml.safe_load(recipe)["quantization_stage"]["quantization_modifiers"]["QuantizationModifier"]["ignore"]
    assert ignored == ["lm_head", *(f"model.layers.{layer}.mlp.down_proj" for layer in (1, 2, 8, 9, 11))]


def test_a_coordinate_with_and_without_a_revision_is_exported_once():
    known = coordinates_of("mistralai/Mistral-7B-v0.1", folder=CATALOG)
    assert [(each.row, each.col) for each in known].count((2070, 7310)) == 2
    (one,) = (each for each in selected(known, standings=(), critical=False) if (each.row, each.col) == (2070, 7310))
    assert (one.commit, one.value) == ("27d67f1b5f57dc0953326b2601d68371d40ea8da", -0.2734375)
    assert one.sources[-1] == "fabianandresgrob/super_weights" and len(one.sources) == 4
    unpinned = replace(one, commit=None)
    for change in ({"value": -0.3}, {"standing": "disputed"}, {"col": 7311}, {"expert": 0}, {"model": "me/other"}):
        both = [replace(unpinned, **change), one]
        assert selected(both, standings=(), critical=False) == both
