"""Shapes of made-up checkpoints by name: blocks with attention, MLPs and experts, and what is found in them."""

from collections import Counter

from analyzer.projections.down_projections import find_down_projections

HIDDEN, INNER, ROUTED = 16, 24, 8
CONFIG = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 3}
GATED = ("gate_proj", "up_proj", "down_proj")


def attention(block, hidden=HIDDEN):
    """Return the attention and the norms of a block."""
    linears = {f"{block}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    return linears | {f"{block}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}


def mlp(name, inner=INNER, hidden=HIDDEN, names=GATED, experts=(), suffix=".weight"):
    """Return an MLP: its inputs, then its down projection; `experts` is () or (count,) of fused ones."""
    *inputs, down = names
    shapes = {f"{name}.{each}{suffix}": (*experts, inner, hidden) for each in inputs}
    return shapes | {f"{name}.{down}{suffix}": (*experts, hidden, inner)}


def dense(stack="model.layers", layers=range(3), hidden=HIDDEN, inner=INNER):
    """Return blocks with attention and a gated MLP."""
    shapes = {}
    for layer in layers:
        shapes |= attention(f"{stack}.{layer}", hidden) | mlp(f"{stack}.{layer}.mlp", inner, hidden)
    return shapes


def mixture(stack="model.layers", experts=4, *, container="mlp.experts", shared="mlp.shared_experts"):
    """Return blocks of which the first is dense and two have experts, one by one, a router, and a shared expert."""
    shapes = dense(stack, range(1))
    for layer in (1, 2):
        block = f"{stack}.{layer}"
        shapes |= attention(block) | {f"{block}.mlp.gate.weight": (experts, HIDDEN)}
        for expert in range(experts):
            shapes |= mlp(f"{block}.{container}.{expert}", ROUTED)
        shapes |= mlp(f"{block}.{shared}", ROUTED)
    return shapes


def without(shapes, *parts):
    """Return the shapes but for those whose names hold one of these."""
    return {name: shape for name, shape in shapes.items() if not any(part in name for part in parts)}


def stored_as(shapes, dtype, *parts):
    """Return (dtype, shape) of each tensor: BF16, but `dtype` where the name holds one of these."""
    return {name: (dtype if any(part in name for part in parts) else "BF16", shape) for name, shape in shapes.items()}


def look(shapes, **config):
    """Return what is found among tensors that are plain floats, or given as (dtype, shape)."""
    tensors = {name: each if isinstance(each[0], str) else ("BF16", each) for name, each in shapes.items()}
    return find_down_projections("m", tensors, config)


def places(found):
    """Return where the down projections are, as text, with how many there are of each (rows, cols)."""
    return [str_of(each) for each in found.projections], dict(Counter(each.shape for each in found.projections))


def str_of(projection):
    """Return the place of a down projection as a coordinate has it."""
    tower = f"{projection.tower}:" if projection.tower else ""
    mlp = "" if projection.mlp is None else f".{projection.mlp}"
    expert = "" if projection.expert is None else f",{projection.expert}"
    return f"{tower}{projection.layer}{mlp}{expert}"
