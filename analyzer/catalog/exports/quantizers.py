"""Known coordinates -> what GPTQModel, torchao and llama.cpp take to leave single matrices alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from analyzer.catalog.exports.modules import by_module, gguf_tensor_of
from analyzer.catalog.lookup import KnownCoordinate

SCHEME = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}  # an example, torchao's own defaults
KEPT_AS = "f16"


def gptqmodel_rules(coordinates: Sequence[KnownCoordinate]) -> dict[str, dict[str, Any]]:
    r"""Return what `QuantizeConfig(dynamic=...)` of GPTQModel (7.7) takes: a rule against each module.

    A key is a regular expression that is matched from a name's beginning. Raises CatalogError like by_module.
    """
    return {f"-:^{re.escape(module)}$": {} for module in by_module(coordinates)}


def torchao_config(coordinates: Sequence[KnownCoordinate]) -> dict[str, Any]:
    """Return what torchao's (0.18) `config_from_dict` makes a `FqnToConfig` of: null for each module or parameter.

    All other linear maps but `lm_head` get the example's scheme, by `quantize_(model, config, filter_fn=None)`. Raises
    CatalogError like by_module.
    """
    names = dict.fromkeys(["lm_head", *by_module(coordinates, whole=True)])
    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": {**names, "_default": SCHEME}}}


def llama_cpp_types(coordinates: Sequence[KnownCoordinate]) -> str:
    """Return lines that `llama-quantize --tensor-type-file` takes, each also an argument of its `--tensor-type`.

    What is before the = is a regular expression that is searched for in a tensor's name, the first that is found wins.
    Raises CatalogError where a tensor's name is not known.
    """
    layers = {gguf_tensor_of(each): each.layer for each in coordinates}
    return "".join(f"^{re.escape(name)}$={KEPT_AS}\n" for name in sorted(layers, key=lambda name: (layers[name], name)))
