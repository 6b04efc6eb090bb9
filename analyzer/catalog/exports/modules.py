"""What the modules of known coordinates are called: by transformers, once experts are apart, and in a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from analyzer.base.errors import CatalogError, shown
from analyzer.catalog.families import family_of
from analyzer.catalog.lookup import KnownCoordinate

_LLAMA = "model.layers.{layer}.mlp.down_proj"
_TOWER = "model.language_model.layers.{layer}.mlp.down_proj"
# What transformers calls the module of a down projection, by model_type: for what others report, and older entries.
MODULES = {
    **dict.fromkeys(
        ("cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2"),
        _LLAMA,
    ),
    **dict.fromkeys(("qwen3", "stablelm"), _LLAMA),
    **dict.fromkeys(("gemma3", "llava"), _TOWER),
    "bert": "bert.encoder.layer.{layer}.output.dense",
    "bloom": "transformer.h.{layer}.mlp.dense_4h_to_h",
    "falcon": "transformer.h.{layer}.mlp.dense_4h_to_h",
    "gpt_neox": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
    "gptj": "transformer.h.{layer}.mlp.fc_out",
    "modernbert": "model.layers.{layer}.mlp.Wo",
    "mpt": "transformer.blocks.{layer}.ffn.down_proj",
    "opt": "model.decoder.layers.{layer}.fc2",
    "phi": "model.layers.{layer}.mlp.fc2",
    "starcoder2": "model.layers.{layer}.mlp.c_proj",
}
# llm-compressor takes fused experts apart into modules of these names before it quantizes.
EXPERTS = {
    "qwen2_moe": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    "qwen3_moe": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
}
# The model_type of families of which others report coordinates, for models that nobody has analysed here.
FAMILY_TYPES = {
    "aya-expanse": "cohere",
    "bloom": "bloom",
    "deepseek-llm": "llama",
    "eurollm": "llama",
    "falcon": "falcon",
    "gemma": "gemma",
    "gemma-3": "gemma3",
    "llama": "llama",
    "llama-2": "llama",
    "llama-3": "llama",
    "llama-3.1": "llama",
    "llama-3.2": "llama",
    "llava-1.5": "llava",
    "mistral": "mistral",
    "modernbert": "modernbert",
    "olmo": "olmo",
    "phi-3": "phi3",
    "qwen2": "qwen2",
    "qwen2.5": "qwen2",
    "qwen3": "qwen3",
    "smollm2": "llama",
    "towerbase": "llama",
    "towerinstruct": "llama",
}
OTHER_CODE = frozenset({"allenai/OLMo-1B"})  # not transformers' own modules, whatever their family
APART = "down_proj"  # the only parameter of fused experts that quantizers are known to take apart
LANGUAGE = "language_model."  # what GGUF's names leave out


def module_of(coordinate: KnownCoordinate) -> str | None:
    """Return the name of the module that holds a weight in transformers' model; null where it is not known.

    Of experts that are one tensor there, it is the name that llm-compressor and GPTQModel give the expert's own, once
    they have taken them apart; that of the whole where they do not.
    """
    if coordinate.module is not None:
        if coordinate.parameter != APART:
            return coordinate.module
        return f"{coordinate.module}.{coordinate.expert}.{APART}"
    model_type = coordinate.model_type or FAMILY_TYPES.get(family_of(coordinate.model))
    if model_type is None or coordinate.model in OTHER_CODE or coordinate.tower or coordinate.mlp is not None:
        return None
    if coordinate.expert is not None:
        name = EXPERTS.get(model_type) or EXPERTS.get(f"{model_type}_moe")
    else:
        name = MODULES.get(model_type)
    return name.format(layer=coordinate.layer, expert=coordinate.expert) if name else None


def by_module(coordinates: Sequence[KnownCoordinate], *, whole: bool = False) -> dict[str, list[KnownCoordinate]]:
    """Return the coordinates of each module, by its name, in the order of layers.

    With `whole` a tensor that many experts share goes by its own name. Raises CatalogError where a module's name is not
    known or, without `whole`, where it is experts' that nobody takes apart.
    """
    modules: dict[str, list[KnownCoordinate]] = {}
    for each in coordinates:
        module = module_of(each)
        if module is None:
            raise CatalogError(
                f"the module of layer {each.layer} in {shown(each.model)} has a name that this tool does not know: "
                "use --format json, or leave out what is only reported with --standing verified"
            )
        if each.parameter not in (None, APART) and not whole:
            raise CatalogError(
                f"the experts of layer {each.layer} in {shown(each.model)} are one tensor, "
                f"{shown(f'{module}.{each.parameter}')}, which this format cannot name: use --format torchao or json"
            )
        if whole and each.parameter is not None:
            module = f"{each.module}.{each.parameter}"
        modules.setdefault(module, []).append(each)
    return dict(sorted(modules.items(), key=lambda item: (item[1][0].layer, item[0])))


def gguf_tensor_of(coordinate: KnownCoordinate) -> str:
    """Return what the tensor of a weight is called in a GGUF file, by the gguf library's own table.

    All experts of a layer are one tensor there. Raises CatalogError where the module or the table's name for it is not
    known.
    """
    module = coordinate.module or module_of(coordinate)
    if module is not None:
        if coordinate.parameter not in (None, "weight"):
            module = f"{module}.{coordinate.parameter}"
        elif coordinate.expert is not None:
            holder, _, last = module.rpartition(".")
            module = f"{holder.removesuffix(f'.{coordinate.expert}')}.{last}"
        first = module.replace(f".{coordinate.layer}.", ".0.", 1)
        names = [first, first.replace(LANGUAGE, "")]
        if coordinate.tower is None:  # else what is left without its beginning may be another tower's
            names.append(first.partition(".")[2])
        for name in names:
            if len(found := _gguf_names(name)) == 1:
                return f"{next(iter(found)).replace('blk.0.', f'blk.{coordinate.layer}.')}.weight"
    raise CatalogError(
        f"the gguf library has no name for {shown(module) if module else f'the module of layer {coordinate.layer}'} "
        f"in {shown(coordinate.model)}: use --format json"
    )


@cache
def _gguf_names(module: str) -> frozenset[str]:
    """Return what any of the architectures that llama.cpp knows calls a module of block 0."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from gguf.tensor_mapping import TensorNameMap

    names, shared = set(), TensorNameMap.block_mappings_cfg
    try:
        for architecture in MODEL_ARCH:
            TensorNameMap.block_mappings_cfg = dict(shared)  # into which each map writes what is its architecture's
            names.add(get_tensor_name_map(architecture, 1).get_name(module))
    finally:
        TensorNameMap.block_mappings_cfg = shared
    return frozenset(name for name in names if name is not None)
