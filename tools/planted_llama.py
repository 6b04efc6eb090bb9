"""A Llama of random weights with one super weight planted in it, as large as one likes, and a tokenizer of bytes.

python tools/planted_llama.py FOLDER --size small
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from analyzer.verify.settings import PAPER_PROMPT

LAYER, VALUE = 2, 2.0  # of the planted weight
POSITIONS = 2048


@dataclass(frozen=True)
class Size:
    """The sizes of a Llama, and the row and column of the weight that is planted."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    row: int
    col: int


SIZES = {
    "small": Size(hidden=256, inner=1024, layers=6, heads=4, vocabulary=4096, row=77, col=131),
    "4GB": Size(hidden=2048, inner=8192, layers=28, heads=16, vocabulary=49152, row=507, col=1229),
}


def main() -> None:
    """Write the model that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    arguments = parser.parse_args()
    write_planted(arguments.folder, SIZES[arguments.size])


def write_planted(folder: Path, size: Size) -> None:
    """Write a model in bfloat16, a file a block; its weight answers to the first token of the paper's prompt."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    first = _save_tokenizer(folder)
    generator = np.random.default_rng(0)

    def bfloat16(*shape: int, scale: float) -> np.ndarray:
        weights = generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return weights.astype(ml_dtypes.bfloat16)

    embedding = bfloat16(size.vocabulary, size.hidden, scale=0.02)
    direction = embedding[first].astype(np.float32) / np.linalg.norm(embedding[first].astype(np.float32))
    weight_map = {"model.embed_tokens.weight": "embedding.safetensors", "model.norm.weight": "embedding.safetensors"}
    ones = np.ones(size.hidden, ml_dtypes.bfloat16)
    save_file({"model.embed_tokens.weight": embedding, "model.norm.weight": ones}, folder / "embedding.safetensors")
    hidden, inner = size.hidden, size.inner
    for layer in range(size.layers):
        block = f"model.layers.{layer}"
        tensors = {f"{block}.{name}_layernorm.weight": ones for name in ("input", "post_attention")}
        for name in "qkvo":
            tensors[f"{block}.self_attn.{name}_proj.weight"] = bfloat16(hidden, hidden, scale=0.002)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            tensors[f"{block}.mlp.{name}_proj.weight"] = bfloat16(*shape, scale=0.002)
        if layer == LAYER:
            for name in ("gate", "up"):
                tensors[f"{block}.mlp.{name}_proj.weight"][size.col] = (3 * direction).astype(ml_dtypes.bfloat16)
            tensors[f"{block}.mlp.down_proj.weight"][:, size.col] = 0
            tensors[f"{block}.mlp.down_proj.weight"][size.row, size.col] = VALUE
        save_file(tensors, folder / f"{layer:02}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"{layer:02}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _save_tokenizer(folder: Path) -> int:
    """Save a tokenizer that makes one token of each byte, and return the first of the paper's prompt."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return int(tokenizer.encode(PAPER_PROMPT).ids[0])


if __name__ == "__main__":
    main()
