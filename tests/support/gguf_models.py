"""GGUF files of tiny stock models, laid as llama.cpp's converter lays them, and the floats that they stand for."""

import re

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from gguf_files import write_gguf
from mlx_models import ONE, tiny_model
from models import WORDS, save_tokenizer
from safetensors.numpy import load_file, save_file

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "mlp_only_layers": []}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 123456.0}}
# By the architecture's name: the model type, what is particular in the config, and how its blocks' norms are called.
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
AROUND = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", **AFTER}
SCALED = {"query_pre_attn_scalar": 16}
LFM2 = {"operator_norm": "attn_norm", "model.embedding_norm.": "token_embd_norm.", "self_attn.out_proj": "attn_output"}
LFM2 |= {"self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm", "conv.conv": "shortconv.conv"}
LFM2 |= {"conv.in_proj": "shortconv.in_proj", "conv.out_proj": "shortconv.out_proj"}
LFM2 |= {f"feed_forward.{one}": f"ffn_{other}" for one, other in {"w1": "gate", "w2": "down", "w3": "up"}.items()}
QWEN35 = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}
QWEN35 |= {"linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.A_log": "ssm_a"}
QWEN35 |= {
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.dt_bias": "ssm_dt.bias",
}
QWEN35 |= {
    f"linear_attn.{one}": f"ssm_{other}"
    for one, other in {"conv1d": "conv1d", "norm": "norm", "out_proj": "out"}.items()
}
KEYS, VALUES, WIDTH = 2, 6, 16  # heads of Qwen3.5's linear attention, and the channels of one
LINEAR = {"linear_num_key_heads": KEYS, "linear_num_value_heads": VALUES, "full_attention_interval": 4}
LINEAR |= {"linear_key_head_dim": WIDTH, "linear_value_head_dim": WIDTH}
LINEAR |= {"rope_parameters": {**ROTARY["rope_parameters"], "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}}
CONV = {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False}
MODELS = {
    "llama": ("llama", ROTARY, NORMS),
    "qwen2": ("qwen2", ROTARY, NORMS),
    "qwen3": ("qwen3", {**ROTARY, "head_dim": 32}, NORMS),
    "qwen2moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}, NORMS),
    "qwen3moe": ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, NORMS),
    "gemma": ("gemma", {}, NORMS),
    "gemma2": ("gemma2", SCALED, AROUND),
    "gemma3": ("gemma3_text", {**SCALED, "num_hidden_layers": 6}, AROUND),
    "olmo2": ("olmo2", {}, AFTER),
    "phi3": ("phi3", {"original_max_position_embeddings": 64}, NORMS),
    "starcoder2": ("starcoder2", {}, NORMS),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5}, NORMS),
    "nemotron": ("nemotron", {}, NORMS),
    "lfm2": ("lfm2", CONV, LFM2),
    "qwen35": ("qwen3_5_text", LINEAR, QWEN35),
    "qwen35moe": ("qwen3_5_moe_text", {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 64}, QWEN35),
}
SHIFTED = ("gemma", "gemma2", "gemma3", "nemotron", "qwen35", "qwen35moe")
WINDOWED = ("gemma2", "gemma3", "phi3", "starcoder2")
CALLED = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.", "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.c_fc": "ffn_up",
    "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.c_proj": "ffn_down", "mlp.gate.": "ffn_gate_inp.",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}  # fmt: skip
SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "use_parallel_residual": "use_parallel_residual",
}
# A tokenizer of the words of models.py, which are whole tokens; " " is one of its own.
WORD, CONTROL = 4, 3
TOKENS = ["<unk>", *WORDS, "Ġ", "ĠĠ"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [CONTROL, *[WORD] * len(WORDS), 1, 1],
    "tokenizer.ggml.merges": ["Ġ Ġ"],
}


def tiny_of(architecture, **more):
    """Return a tiny stock model of an architecture."""
    model_type, config, _ = MODELS[architecture]
    return tiny_model(model_type, **{**config, **more})


def write_gguf_model(model, folder, architecture, *, kind="Q4_0", metadata=None, tensors=None):
    """Write a model as a GGUF file, its matrices as blocks of a kind, and as the stock floats that this stands for.

    Returns the file and the folder of the floats. `metadata` and `tensors` are added, a value of null taken away.
    """
    floats, file = folder / "floats", folder / "gguf" / "model.gguf"
    model.save_pretrained(floats)
    save_tokenizer(floats)
    stored, stacks = load_file(floats / "model.safetensors"), {}
    laid = {}
    for name in [name for name in stored if name.endswith("experts.gate_up_proj")]:
        halves = np.split(stored.pop(name), 2, axis=1)
        names = [name.replace("gate_up_proj", half) for half in ("gate_proj", "up_proj")]
        stored |= dict(zip(names, halves, strict=True))
    for name, tensor in sorted(stored.items()):
        turned = _turned(model.config, architecture, name, tensor)
        matrix = (tensor.ndim == 2 or ".experts." in name) and tensor.shape[-1] % 32 == 0
        data = quantize(turned, GGMLQuantizationType[kind]) if matrix else turned
        values = dequantize(data, GGMLQuantizationType[kind]) if matrix else turned
        stored[name] = np.ascontiguousarray(_turned(model.config, architecture, name, values, back=True), np.float32)
        expert = ONE.search(name)
        if expert is None:
            laid[_called(architecture, name)] = (kind if matrix else "F32", data)
        else:
            of_all = f"{name[: expert.start()]}.experts.{expert[2]}.weight"
            stacks.setdefault(_called(architecture, of_all), {})[int(expert[1])] = data
    laid |= {name: (kind, np.stack([parts[e] for e in sorted(parts)])) for name, parts in stacks.items()}
    for name in [name for name in stored if name.endswith("experts.gate_proj")]:
        halves = [stored.pop(name), stored.pop(name.replace("gate_proj", "up_proj"))]
        stored[name.replace("gate_proj", "gate_up_proj")] = np.concatenate(halves, axis=1)
    save_file(stored, floats / "model.safetensors", {"format": "pt"})
    laid |= tensors or {}
    said = {**_metadata(model.config, architecture), **TOKENIZER, **(metadata or {})}
    given = {key: value for key, value in said.items() if value is not None}
    given_tensors = {name: (one, data.view(np.uint8) if one == "F32" else data) for name, (one, data) in laid.items()}
    write_gguf(file, given_tensors, architecture=architecture, metadata=given)
    return file, floats


def rotary_factors(model):
    """Return by what each frequency of a model's rotary embedding is divided, as the file has it."""
    theta, turned = model.config.rope_parameters["rope_theta"], model.model.rotary_emb.inv_freq
    plain = 1.0 / theta ** (torch.arange(len(turned)) / len(turned))
    return (plain / turned).numpy().astype(np.float32)


def _turned(config, architecture, name, tensor, *, back=False):
    """Return a tensor as the converter lays it, or back as the stock model has it."""
    if architecture in SHIFTED and name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return tensor - 1 if back else tensor + 1
    if "conv" in name and tensor.ndim == (2 if back else 3) and name.endswith(("conv.weight", "conv1d.weight")):
        turned = _by_value_heads(name, tensor[:, 0] if not back else tensor, back)
        return turned[:, None] if back else turned
    if ".linear_attn." in name:
        turned = np.log(-tensor) if back and name.endswith("A_log") else tensor
        turned = _by_value_heads(name, turned, back)
        return -np.exp(turned) if not back and name.endswith("A_log") else turned
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if architecture != "llama" or heads is None:
        return tensor
    halves = len(tensor) // heads // 2
    apart = (heads, halves, 2) if back else (heads, 2, halves)
    return np.ascontiguousarray(tensor.reshape(*apart, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape))


def _by_value_heads(name, tensor, back):
    """Return a tensor of Qwen3.5's linear attention with its value heads in turn over the key heads, or back."""
    if name.endswith("out_proj.weight"):
        return np.ascontiguousarray(_by_value_heads("", tensor.T, back).T)
    if (".linear_attn." in name and name.endswith("norm.weight")) or ".conv.conv." in name:
        return tensor
    first = 2 * KEYS * WIDTH if "qkv" in name or "conv1d" in name else 0
    apart = (VALUES // KEYS, KEYS) if back else (KEYS, VALUES // KEYS)
    values = tensor[first:]
    turned = values.reshape(*apart, len(values) // VALUES, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    return np.concatenate([tensor[:first], turned])


def _called(architecture, name):
    name = f"{name}.weight" if name.endswith(("experts.gate_proj", "experts.up_proj", "experts.down_proj")) else name
    for stock, other in {**CALLED, **MODELS[architecture][2]}.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(stock)}(?=\.|$|\d|(?<=\.)\w)", other, name)
    return name


def _metadata(config, architecture):
    rope = config.rope_parameters
    windowed = "sliding_attention" in rope
    full = rope["full_attention"] if windowed else rope
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    epsilons = [getattr(config, key, None) for key in ("norm_epsilon", "layer_norm_eps", "norm_eps")]
    said = {key: getattr(config, name, None) for key, name in SIZES.items()}
    said |= {
        "attention.layer_norm_epsilon": next((each for each in epsilons if each is not None), None),
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.sliding_window": getattr(config, "sliding_window", None) if architecture in WINDOWED else None,
        "rope.dimension_count": int(width * full.get("partial_rotary_factor", 1)),
        "rope.freq_base": float(full["rope_theta"]),
        "rope.freq_base_swa": float(rope["sliding_attention"]["rope_theta"]) if windowed else None,
    }
    if full["rope_type"] in ("linear", "yarn"):
        said |= {"rope.scaling.type": full["rope_type"], "rope.scaling.factor": float(full["factor"])}
        said["rope.scaling.original_context_length"] = full.get("original_max_position_embeddings")
    if architecture == "lfm2":
        said |= {"attention.layer_norm_rms_epsilon": config.norm_eps, "attention.layer_norm_epsilon": None}
        said |= {"shortconv.l_cache": config.conv_L_cache, "rope.dimension_count": None}
        said["attention.head_count_kv"] = [2 if each == "full_attention" else 0 for each in config.layer_types]
    if architecture.startswith("qwen35"):
        said |= {"rope.dimension_sections": [2, 1, 1, 0], "full_attention_interval": 4, "ssm.conv_kernel": 4}
        said |= {"ssm.state_size": WIDTH, "ssm.group_count": KEYS, "ssm.time_step_rank": VALUES}
        said["ssm.inner_size"] = VALUES * WIDTH
    return {f"{architecture}.{key}": value for key, value in said.items()}
