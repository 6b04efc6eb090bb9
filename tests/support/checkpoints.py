"""Writes tiny checkpoints, real ones, for the tests to read."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from analyzer.base.errors import SourceError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1096593461\n"
LLAMA_DOWN = "model.layers.{}.mlp.down_proj.weight"
GPT2_DOWN = "transformer.h.{}.mlp.c_proj.weight"


def write_config(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))


def write_tensors(folder, tensors, *, shards=1):
    """Save the tensors as transformers does: model.safetensors, or shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number in range(shards):
        filename = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        save_file(part, folder / filename, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, filename)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_downs(*, layers=3, hidden=8, intermediate=20, dtype="BF16", seed=0):
    """Return a down projection for each layer, [hidden, intermediate]."""
    generator = np.random.default_rng(seed)
    return [generator.normal(0, 0.02, (hidden, intermediate)).astype(DTYPES[dtype]) for _ in range(layers)]


def edited(downs, layer, row, col, value):
    """Return the down projections with one weight changed."""
    changed = [down.copy() for down in downs]
    changed[layer][row, col] = value
    return changed


def write_llama(folder, downs, *, shards=1, **config):
    """Write a llama-like checkpoint around these down projections, [hidden, intermediate] each."""
    hidden, intermediate = downs[0].shape
    tensors = {"model.embed_tokens.weight": np.ones((16, hidden), downs[0].dtype)}
    for layer, down in enumerate(downs):
        # Larger than any down projection: whoever ranks the wrong tensor ranks these.
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = np.full((intermediate, hidden), 9, down.dtype)
        tensors[LLAMA_DOWN.format(layer)] = down
        tensors[f"model.layers.{layer}.post_attention_layernorm.weight"] = np.full(hidden, 7, down.dtype)
    write_tensors(folder, tensors, shards=shards)
    write_config(folder, **{"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": len(downs), **config})


def write_gpt2(folder, downs, **config):
    """Write a gpt2-like checkpoint: its Conv1D keeps each down projection as [intermediate, hidden]."""
    hidden = downs[0].shape[0]
    tensors = {"transformer.wte.weight": np.ones((16, hidden), downs[0].dtype)}
    for layer, down in enumerate(downs):
        tensors[GPT2_DOWN.format(layer)] = np.ascontiguousarray(down.T)
        tensors[f"transformer.h.{layer}.mlp.c_proj.bias"] = np.full(hidden, 9, down.dtype)
    write_tensors(folder, tensors)
    write_config(folder, **{"model_type": "gpt2", "n_embd": hidden, "n_layer": len(downs), **config})


def header_bytes(path):
    """Return where a safetensors file's data begin."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def tensor_ranges(path):
    """Return the first and last byte of each tensor in a safetensors file, as a Range header counts them."""
    start = header_bytes(path)
    header = json.loads(path.read_bytes()[8:start])
    return {
        name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1] - 1)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def refused(call, *arguments, **options):
    """Return the one line that reading from a source fails with."""
    with pytest.raises(SourceError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message
