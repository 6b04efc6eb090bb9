"""MLX's checkpoints of tiny stock models: every matrix in 4 bits and experts stacked, and the floats they stand for."""

import json
import re
import shutil

import numpy as np
import torch
import transformers
from checkpoints import write_tensors
from encoders import mlx, words
from models import save_tokenizer, with_large_weights
from safetensors.numpy import load_file, save_file

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True}
SHARED = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MIXTURES = {
    "olmoe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {**EXPERTS, "mlp_only_layers": [0]},
    "glm4_moe": {**EXPERTS, **SHARED},
    "mixtral": LOCAL,
    "phimoe": LOCAL,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8}
# What holds one expert's matrix in the stock checkpoint, and what holds all of them in MLX's.
ONE = re.compile(r"\.experts\.(\d+)\.(\w+)\.weight$")
CALLED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def rounded(_, matrix, group=32):
    """Return a matrix in 4 bits a number as MLX would store it, and the values that this stands for."""
    groups = matrix.reshape(len(matrix), -1, group)
    biases, scales = groups.min(axis=-1), np.ptp(groups, axis=-1) / 15 + np.float32(1e-8)
    codes = np.rint((groups - biases[..., None]) / scales[..., None]).astype(np.uint8)
    values = codes * scales[..., None] + biases[..., None]
    stored = {"weight": words(codes.reshape(matrix.shape), 4, np.uint32), "scales": scales, "biases": biases}
    return stored, values.reshape(matrix.shape)


def tiny_model(model_type, **more):
    """Return a tiny model of a type, its weights large enough to matter."""
    torch.manual_seed(0)
    config = {**SIZES, **MIXTURES.get(model_type, {}), **more}
    if model_type == "gemma3":
        config = {"text_config": {**config, "num_hidden_layers": 6}, "vision_config": VISION, "mm_tokens_per_image": 4}
    config = transformers.AutoConfig.for_model(model_type, **config)
    return with_large_weights(transformers.AutoModelForCausalLM.from_config(config).eval())


def write_mlx(model, folder, *, encode=None, quantization=None):
    """Write a model as MLX has it, and as the stock floats that this stands for; returns both folders.

    `encode` makes of a matrix, by its name, what is stored and its values; by default random ones take its place.
    """
    floats, packed = folder / "floats", folder / "mlx"
    model.save_pretrained(floats)
    save_tokenizer(floats)
    tensors = load_file(floats / "model.safetensors")
    generator = np.random.default_rng(0)
    encode = encode or (lambda _, matrix: mlx(4, 32)(generator, *matrix.shape, float(np.abs(matrix).mean())))
    stored, stacks = {}, {}
    for name, tensor in sorted(tensors.items()):
        if tensor.ndim != 2 or tensor.shape[1] % 32 or not name.endswith(".weight"):
            stored[name] = tensor.transpose(0, 2, 3, 1) if tensor.ndim == 4 else tensor
            continue
        parts, values = encode(name, tensor)
        tensors[name] = values.astype(np.float32)
        expert = ONE.search(name)
        for end, part in parts.items():
            if expert is None:
                stored[f"{name.removesuffix('.weight')}.{end}"] = part
            else:
                of_all = f"{name[: expert.start()]}.switch_mlp.{CALLED.get(expert[2], expert[2])}.{end}"
                stacks.setdefault(of_all, {})[int(expert[1])] = part
    stored |= {name: np.stack([parts[expert] for expert in sorted(parts)]) for name, parts in stacks.items()}
    save_file(tensors, floats / "model.safetensors", {"format": "pt"})
    write_tensors(packed, stored)
    for file in floats.glob("*.json"):
        shutil.copy(file, packed)
    said = json.loads((floats / "config.json").read_text())
    how = quantization or {"group_size": 32, "bits": 4}
    (packed / "config.json").write_text(json.dumps({**said, "quantization": how, "quantization_config": how}))
    return packed, floats
