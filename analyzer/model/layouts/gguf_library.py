"""All of transformers' reading of GGUF files that this tool stands on beyond its promised interface.

A new version of the library may change any of it; the tests of the files beside this one name what it broke.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.integrations.gguf import (
    convert_gguf_tokenizer,
    get_gguf_config,
    get_gguf_conversion_mapping,
    get_gguf_tokenizer,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from analyzer.base.errors import ForwardError, shown

SPLIT_AS_GPT_2 = ("default", "gpt-2")
TURNED_AS = {"gemma": "gemma2"}  # whose norms are shifted too, and which the library does not know


def config_of(metadata: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return what the library makes of the metadata of an architecture that it loads by rules."""
    config: dict[str, Any] = get_gguf_config(metadata, names)
    return config


def rules_of(architecture: str, config: Any) -> list[Any]:
    """Return the rules by which the library loads an architecture's tensors."""
    rules: list[Any] = get_gguf_conversion_mapping(architecture, config)
    return rules


def processor_of(architecture: str, config: Any) -> Any:
    """Return what the library turns an architecture's tensors with, where it has no rules."""
    return TENSOR_PROCESSORS.get(TURNED_AS.get(architecture, architecture), TensorProcessor)(config=config.to_dict())


def unknown_split(metadata: Mapping[str, Any]) -> str | None:
    """Return how a file's tokenizer splits text, where the library has no rule of this name and takes GPT-2's."""
    split = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or split in (*GGUF_PRE_TOKENIZER_SPLITS, *SPLIT_AS_GPT_2):
        return None
    return shown(split, 40)


def read_gguf_tokenizer(file: Path) -> Any:
    """Return the tokenizer that a file describes; what lies beside the file is not asked.

    Raises ForwardError where it describes none, and whatever the library raises for one that it cannot make.
    """
    architecture, described, config = get_gguf_tokenizer(str(file))
    if "tokens" not in described or "tokenizer_type" not in described:
        raise ForwardError(f"{file.name} has no tokenizer: use the model that it was made from")
    backend, _ = convert_gguf_tokenizer(architecture, described)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **config)
