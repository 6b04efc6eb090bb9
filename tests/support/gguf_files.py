"""Writes GGUF files, real ones by the gguf library, for the tests to read; and what they hold, by the same."""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.projections.down_projections import down_projections
from analyzer.source.opening import open_model

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def random_blocks(kind, *shape, seed=0):
    """Return a tensor of this type as its bytes, [..., rows, bytes a row]; some types' are not all finite."""
    generator = np.random.default_rng(seed)
    numbers, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if kind in FLOATS:
        return generator.normal(0, 0.02, shape).astype(FLOATS[kind]).view(np.uint8)
    return generator.integers(0, 256, (*shape[:-1], shape[-1] // numbers * size), np.uint8)


def values_of(kind, data):
    """Return what the bytes of a tensor stand for."""
    if kind == "F64":
        return data.view(np.float64)
    with np.errstate(all="ignore"):
        return dequantize(data, GGMLQuantizationType[kind])


def write_gguf(path, tensors, *, architecture="llama", metadata=None, **options):
    """Write tensors, name -> (type, bytes or float32 array), with numbers of the architecture and other metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture, **options)
    for key, value in (metadata or {}).items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (kind, data) in tensors.items():
        if kind in FLOATS:
            writer.add_tensor(name, data.view(FLOATS[kind]))
        else:
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_llama_gguf(path, kind, *, layers=2, rows=64, cols=512, experts=None, seed=0, **options):
    """Write a llama-like file around random down projections of a type, and return these by (layer, expert)."""
    tensors = {"token_embd.weight": ("F32", random_blocks("F32", 16, rows))}
    downs = {}
    for layer in range(layers):
        shape = (rows, cols) if experts is None else (experts, rows, cols)
        data = random_blocks(kind, *shape, seed=seed + layer)
        ends = "" if experts is None else "_exps"
        # Larger than any down projection: whoever ranks the wrong tensor ranks these.
        tensors[f"blk.{layer}.ffn_up{ends}.weight"] = ("F32", np.full((cols, rows), 1e30, np.float32).view(np.uint8))
        tensors[f"blk.{layer}.ffn_down{ends}.weight"] = (kind, data)
        tensors[f"blk.{layer}.ffn_norm.weight"] = ("F32", np.full(rows, 7, np.float32).view(np.uint8))
        values = values_of(kind, data).reshape(shape)
        downs |= {(layer, None): values} if experts is None else {(layer, e): values[e] for e in range(experts)}
    sizes = {"block_count": layers, "embedding_length": rows, "feed_forward_length": cols}
    metadata = {f"llama.{key}": value for key, value in sizes.items()} | options.pop("metadata", {})
    write_gguf(path, tensors, metadata=metadata, **options)
    return downs


def read_by_the_library(path):
    """Return a file's tensors as the gguf library reads them: name -> its ReaderTensor."""
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def header_bytes(path):
    """Return where a file's data begin, by the library."""
    return int(GGUFReader(path).data_offset)


def open_gguf(name, **options):
    checkpoint = Checkpoint(open_model(str(name), **options))
    return checkpoint, down_projections(checkpoint)
