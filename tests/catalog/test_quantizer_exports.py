"""What GPTQModel, torchao, llm-compressor and llama.cpp make of exports: their own code, where it is installed."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from gguf import MODEL_ARCH, get_tensor_name_map

from analyzer.base.errors import CatalogError
from analyzer.catalog.exports.modules import MODULES, gguf_tensor_of, module_of
from analyzer.catalog.exports.pointless import pointless
from analyzer.catalog.exports.quantizers import gptqmodel_rules, llama_cpp_types, torchao_config
from analyzer.catalog.exports.recipe import export_recipe
from analyzer.catalog.lookup import KnownCoordinate

PLAIN = KnownCoordinate(
    "m", None, 1, None, 2, 3, 4.5, "verified", "critical", ("s",), "of no table", module="model.layers.1.mlp.down_proj"
)  # fmt: skip
FUSED = replace(PLAIN, layer=2, expert=7, module="model.layers.2.mlp.experts", parameter="down_proj")
APART = replace(PLAIN, layer=2, expert=2, module="model.layers.2.mlp.experts.2.down_proj")
ODD = replace(FUSED, module="model.layers.2.block_sparse_moe.output_linear", parameter="weight")
NAMES = ["model.layers.1.mlp.down_proj", "model.layers.11.mlp.down_proj", "model.layers.2.mlp.experts.7.down_proj"]


def test_rules_of_gptqmodel_leave_out_these_modules_and_no_other():
    config = pytest.importorskip("gptqmodel.quantization.config", reason="gptqmodel is not installed")
    rules = json.loads(json.dumps(gptqmodel_rules([FUSED, PLAIN])))
    assert [config.dynamic_get(rules, name, "bits", 4) for name in NAMES] == [False, 4, False]


def test_rules_of_gptqmodel_by_their_documented_meaning():
    """A key is tried from a name's beginning, and -: leaves out what it matches."""
    rules = gptqmodel_rules([FUSED, PLAIN])
    found = [[key for key in rules if re.match(key.removeprefix("-:"), name)] for name in NAMES]
    assert [len(keys) for keys in found] == [1, 0, 1]
    assert all(key.startswith("-:") for key in rules)


def test_a_config_of_torchao_leaves_these_modules_as_they_are():
    core = pytest.importorskip("torchao.core.config", reason="torchao is not installed")
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = core.config_from_dict(json.loads(json.dumps(torchao_config([PLAIN]))))
    assert isinstance(config, quantization.FqnToConfig)
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(8, 8)
    model.model = torch.nn.Module()
    model.model.layers = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
    for layer in model.model.layers:
        layer.mlp = torch.nn.Module()
        layer.mlp.down_proj = torch.nn.Linear(8, 8)
    quantization.quantize_(model, config, filter_fn=None)
    kept = [name for name, each in model.named_modules() if type(getattr(each, "weight", None)) is torch.nn.Parameter]
    assert kept == ["lm_head", "model.layers.1.mlp.down_proj"]


def test_a_config_of_torchao_names_the_parameter_of_fused_experts():
    config = torchao_config([ODD, FUSED, PLAIN])["_data"]["fqn_to_config"]
    assert [name for name, scheme in config.items() if scheme is None] == [
        "lm_head", "model.layers.1.mlp.down_proj", "model.layers.2.block_sparse_moe.output_linear.weight",
        "model.layers.2.mlp.experts.down_proj",
    ]  # fmt: skip


def test_a_recipe_is_one_of_llm_compressor():
    recipes = pytest.importorskip("llmcompressor.recipe", reason="llmcompressor is not installed")
    recipe = recipes.Recipe.create_instance(export_recipe("m", [FUSED, PLAIN]))
    (modifier,) = recipe.modifiers
    assert modifier.ignore == ["lm_head", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.experts.7.down_proj"]


def test_lines_of_llama_cpp_find_the_tensors_of_the_gguf_librarys_table():
    """As its quantizer reads them: words, each a regular expression, the first = and a type."""
    words = llama_cpp_types([APART, FUSED, PLAIN]).split()
    types = [(re.compile(pattern), kind) for pattern, kind in (word.split("=", 1) for word in words)]
    table = get_tensor_name_map(MODEL_ARCH.LLAMA, 12)

    def kind_of(name):
        tensor = f"{table.get_name(name)}.weight"
        return next((kind for pattern, kind in types if pattern.search(tensor)), None)

    assert [kind_of(f"model.layers.{layer}.mlp.down_proj") for layer in (0, 1, 11)] == [None, "f16", None]
    assert [kind_of(f"model.layers.{layer}.mlp.experts.down_proj") for layer in (1, 2)] == [None, "f16"]
    assert all(word == word.lower() for word in words)  # as it makes them
    assert len(words) == 2  # all experts of a layer are one tensor


@pytest.mark.parametrize("model_type", sorted(set(MODULES) - {"bert", "modernbert", "opt"}))
def test_every_known_module_of_a_decoder_has_a_name_in_gguf(model_type):
    known = replace(PLAIN, module=None, layer=3, model_type=model_type)
    assert gguf_tensor_of(known) == "blk.3.ffn_down.weight"


def test_what_cannot_be_named_is_one_line():
    with pytest.raises(CatalogError, match=r"the experts of layer 2 in m are one tensor, .*which this format cannot"):
        gptqmodel_rules([ODD])
    with pytest.raises(CatalogError, match="has a name that this tool does not know"):
        torchao_config([replace(PLAIN, module=None)])
    with pytest.raises(CatalogError, match="the gguf library has no name for the module of layer 1 in m"):
        llama_cpp_types([replace(PLAIN, module=None)])
    tower = replace(PLAIN, tower="vision", module="vision.layers.1.mlp.down_proj")  # not the language model's
    with pytest.raises(CatalogError, match=r"no name for vision\.layers\.1\.mlp\.down_proj"):
        gguf_tensor_of(tower)


def test_what_others_report_of_the_same_place_is_called_as_the_entry_has_it():
    assert module_of(FUSED) == "model.layers.2.mlp.experts.7.down_proj"
    assert module_of(ODD) == ODD.module
    assert gguf_tensor_of(ODD) == gguf_tensor_of(FUSED) == "blk.2.ffn_down_exps.weight"


def test_an_export_says_where_it_is_pointless():
    assert pointless([PLAIN]) == []
    extreme = replace(PLAIN, row_rank=1, rank_in_128=1, rank_in_32=1, row_others_max=0.75)
    second = replace(PLAIN, row=9, row_rank=2, rank_in_128=2, rank_in_32=1, row_others_max=8.0)
    (said,) = pointless([PLAIN, extreme, second])
    assert said.startswith(
        "Of 2 weights as stored, 1 is the largest of their row (1,2,3 is 4.5, the next of its row 0.75), "
        "1 of their run of 128, 2 of their run of 32. "
    )
    comments = [line for line in export_recipe("m", [extreme]).splitlines() if line.startswith("#")]
    text = " ".join(line.removeprefix("# ") for line in comments)
    assert "protecting that one changes nothing of it" in text
    assert yaml.safe_load(export_recipe("m", [extreme]))


def test_asking_for_all_architectures_leaves_the_gguf_library_as_it_was():
    before = get_tensor_name_map(MODEL_ARCH.LLAMA, 1).mapping
    assert gguf_tensor_of(replace(PLAIN, module="layers.1.feed_forward.w2")) == "blk.1.ffn_down.weight"
    assert get_tensor_name_map(MODEL_ARCH.LLAMA, 1).mapping == before
