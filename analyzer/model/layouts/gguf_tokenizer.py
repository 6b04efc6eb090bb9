"""The tokenizer that a GGUF file's metadata describe, made by the library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from analyzer.base.errors import ForwardError, shown

SPLIT_AS_GPT_2 = ("default", "gpt-2")


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
