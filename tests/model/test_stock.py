"""stock.py against the transformers that is installed: when a new version breaks it, the failing test names what.

stock.py itself is imported only where it is run, so that a name that went is told here and not by Python.
"""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from families import FAMILIES
from imports import files_of, imports_of, parsed
from models import (
    hooked,
    random_llama,
    save,
)

from analyzer.base.errors import AnalyzerError, ForwardError

ANALYZER = Path(__file__).parents[2] / "analyzer"
STOCK = ANALYZER / "model" / "stock.py"
OF_GGUF = STOCK.parent / "layouts" / "gguf_library.py"
VERSION = f"transformers {transformers.__version__}"
OF_TRANSFORMERS = [
    (path, node)
    for path in files_of(ANALYZER).values()
    for node in ast.walk(parsed(path))
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "transformers"
]
BEYOND = [each for file in (STOCK, OF_GGUF) for each in imports_of(file) if each.module.startswith("transformers.")]
# How they call what they import: positional arguments, keyword arguments.
CALLS = {
    "get_model_conversion_mapping": (1, ()),
    "rename_source_key": (5, ()),
    "convert_and_load_state_dict_in_model": (3, ()),
    "LoadStateDictConfig": (0, ("weight_mapping", "dtype", "dtype_plan", "device_map")),
    "BaseModelOutput": (0, ("last_hidden_state",)),
    "no_init_weights": (0, ()),
    "convert_gguf_tokenizer": (2, ()),
    "get_gguf_config": (2, ()),
    "get_gguf_conversion_mapping": (2, ()),
    "get_gguf_tokenizer": (1, ()),
    "TensorProcessor": (0, ("config",)),
}
CLASSES = ("Conv1D", "WeightRenaming", "WeightConverter")  # used to tell one from the other
TABLES = ("GGUF_PRE_TOKENIZER_SPLITS", "TENSOR_PROCESSORS")


def empty(name, **config):
    """Return a tiny model of a family on the meta device."""
    family = getattr(transformers, FAMILIES[name].name)
    with init_empty_weights(include_buffers=False):
        return family(family.config_class(**{**FAMILIES[name].config, **config})).eval()


def loader(model, dtype=torch.float32):
    from analyzer.model.stock import Loader

    return Loader(model, dtype, torch.device("cpu"))


@pytest.mark.parametrize("used", BEYOND, ids=lambda used: used.name)
def test_what_is_imported_is_there_and_takes_what_it_is_given(used):
    found = getattr(import_module(used.module), used.name, None)
    assert found is not None, f"{VERSION} has no {used.module}.{used.name}"
    if used.name in CLASSES:
        assert isinstance(found, type), f"{VERSION}: {used.name} is no class any more"
        return
    if used.name in TABLES:
        assert isinstance(found, dict), f"{VERSION}: {used.name} is no table any more"
        return
    positional, keywords = CALLS[used.name]
    try:
        inspect.signature(found).bind(*range(positional), **dict.fromkeys(keywords))
    except TypeError as error:
        pytest.fail(f"{VERSION}: {used.name} is called in another way: {error}")


@pytest.mark.parametrize("name", sorted({node.attr for _, node in OF_TRANSFORMERS}))
def test_what_is_promised_is_there(name):
    assert hasattr(transformers, name), f"{VERSION} has no transformers.{name}"


def test_a_model_can_be_built_without_memory():
    assert "include_buffers" in inspect.signature(init_empty_weights).parameters
    model = empty("llama")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in model.buffers()} == {"cpu"}


def test_renamings_and_converters_are_told_apart():
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    assert not issubclass(WeightConverter, WeightRenaming), f"{VERSION}: a converter is a renaming"
    assert not issubclass(WeightRenaming, WeightConverter), f"{VERSION}: a renaming is a converter"


# Names as files have them -> the parameter, and whether the tensor is that parameter as it is.
TARGETS = {
    "as it is": ("llama", "model.norm.weight", ("model.norm.weight", True)),
    "without the prefix": ("llama", "layers.1.mlp.down_proj.weight", ("model.layers.1.mlp.down_proj.weight", True)),
    "a prefix too many": ("llama_bare", "model.norm.weight", ("norm.weight", True)),
    "renamed": (
        "bert",
        "bert.encoder.layer.0.output.LayerNorm.gamma",
        ("bert.encoder.layer.0.output.LayerNorm.weight", True),
    ),
    "an expert, fused": (
        "mixtral",
        "model.layers.0.block_sparse_moe.experts.3.w2.weight",
        ("model.layers.0.mlp.experts.down_proj", False),
    ),
    "fused already": (
        "mixtral",
        "model.layers.0.mlp.experts.down_proj",
        ("model.layers.0.mlp.experts.down_proj", True),
    ),
    "of no use": ("llama", "model.layers.9.mlp.down_proj.weight", None),
}


@pytest.mark.parametrize(("family", "name", "target"), TARGETS.values(), ids=TARGETS)
def test_a_stored_name_finds_its_parameter(family, name, target):
    found = loader(empty(family)).targets([name]).get(name)
    assert found == target, f"{VERSION}: rename_source_key answers otherwise for {name}"


def test_tied_parameters_are_named():
    tied = empty("gpt2").all_tied_weights_keys
    assert dict(tied) == {"lm_head.weight": "transformer.wte.weight"}, f"{VERSION}: all_tied_weights_keys"
    assert dict(empty("llama").all_tied_weights_keys) == {}, f"{VERSION}: all_tied_weights_keys of an untied model"


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model"), ("gpt2", "transformer"), ("bert", "bert")])
def test_the_body_has_a_prefix(family, prefix):
    assert empty(family).base_model_prefix == prefix, f"{VERSION}: base_model_prefix"


def test_there_is_a_plan_of_dtypes():
    plan = empty("llama")._get_dtype_plan(torch.float16)
    assert isinstance(plan, dict), f"{VERSION}: _get_dtype_plan"


@pytest.mark.parametrize(
    ("family", "causal", "masked"), [("llama", True, False), ("bert", True, True), ("modernbert", False, True)]
)
def test_configs_tell_which_heads_they_have(family, causal, masked):
    config = getattr(transformers, FAMILIES[family].name).config_class
    assert (config in transformers.MODEL_FOR_CAUSAL_LM_MAPPING) == causal, f"{VERSION}: MODEL_FOR_CAUSAL_LM_MAPPING"
    assert (config in transformers.MODEL_FOR_MASKED_LM_MAPPING) == masked, f"{VERSION}: MODEL_FOR_MASKED_LM_MAPPING"


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_can_be_asked_to_run_one_by_one(tmp_path, family):
    from analyzer.model.stock import build_empty, read_config

    transformers.AutoConfig.for_model(family, **FAMILIES[family].config).save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config._experts_implementation == "eager", f"{VERSION}: _experts_implementation"
    model = build_empty(config, torch.float32, ())
    assert model.config._experts_implementation == "eager", f"{VERSION}: from_config picks another implementation"


def test_loading_sets_what_fits_in_its_dtype_and_tells_what_does_not():
    model = empty("llama").to(torch.float16)
    norm, down = torch.arange(16.0), torch.ones(3, 3)
    name = "model.layers.0.mlp.down_proj.weight"
    mismatched, failed = loader(model, torch.float16).put({"model.norm.weight": norm, name: down})
    assert [(entry[0], tuple(entry[1]), tuple(entry[2])) for entry in mismatched] == [(name, (3, 3), (16, 24))], (
        f"{VERSION}: mismatched_keys"
    )
    assert failed == [], f"{VERSION}: conversion_errors"
    loaded = model.model.norm.weight
    assert (loaded.device.type, loaded.dtype, loaded.tolist()) == ("cpu", torch.float16, norm.tolist())
    assert model.lm_head.weight.is_meta, f"{VERSION}: loading a part of the tensors touches the rest"


def test_loading_fuses_experts_and_tells_which_it_cannot():
    generator = torch.Generator().manual_seed(0)
    model = empty("mixtral", num_hidden_layers=1)
    stored = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
    experts = {stored.format(i): torch.randn(16, 24, generator=generator) for i in range(4)}
    assert loader(model).put(experts) == ([], [])
    torch.testing.assert_close(
        model.model.layers[0].mlp.experts.down_proj.detach(), torch.stack(list(experts.values()))
    )
    experts[stored.format(2)] = torch.ones(3, 3)
    _, failed = loader(empty("mixtral", num_hidden_layers=1)).put(experts)
    assert failed == ["model.layers.0.mlp.experts.down_proj"], f"{VERSION}: conversion_errors"


def test_a_head_can_be_answered_by_bare_hidden_states():
    from analyzer.model.stock import BodyOutput

    hidden = torch.ones(1, 2, 3)
    output = BodyOutput(last_hidden_state=hidden)
    assert output[0] is output.last_hidden_state is hidden, f"{VERSION}: BaseModelOutput"
    assert output.past_key_values is output.attentions is output.anything_new is None, f"{VERSION}: BaseModelOutput"


def test_nothing_else_uses_more_than_is_promised():
    for path in files_of(ANALYZER).values():
        if path in (STOCK, OF_GGUF):
            continue
        inside = [
            each
            for each in imports_of(path)
            if each.module.startswith(("transformers.", "accelerate"))
            or (each.module == "transformers" and inspect.ismodule(getattr(transformers, each.name or "", None)))
        ]
        assert not inside, f"{path}:{inside[0].line} imports {inside[0].module}: that belongs in {STOCK.name}"
    for path, node in OF_TRANSFORMERS:
        if path not in (STOCK, OF_GGUF):
            name = f"transformers.{node.attr}"
            found = getattr(transformers, node.attr)
            assert not inspect.ismodule(found), f"{path}:{node.lineno} uses {name}: that belongs in {STOCK.name}"


def test_code_in_a_repository_is_not_run(tmp_path):
    save(random_llama(), tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "model_code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "model_code.C", "AutoModelForCausalLM": "model_code.M"}}'
    )
    with pytest.raises(ForwardError, match=r"cannot load the model .*it needs code of its own, which is never run"):
        hooked(tmp_path)
    assert not marker.exists()


def test_a_model_that_cannot_be_built_is_one_line(tmp_path):
    save(random_llama(), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 128, "num_attention_heads": 0}')
    with pytest.raises(AnalyzerError) as caught:
        hooked(tmp_path)
    assert "\n" not in str(caught.value)
