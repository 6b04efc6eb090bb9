"""Finds the one planted weight in tiny models of every family, as transformers itself saves them."""

import re

import pytest
import torch
import transformers
from families import FAMILIES, HIDDEN, LLAMA4, ROUTED, build, plant
from safetensors.torch import load_file, save_file

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX, SINGLE
from analyzer.projections.down_projections import find_projections
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource

SQUARE_CONFIGS = {
    "gpt_oss": {"intermediate_size": HIDDEN},
    "llama4_text": {"intermediate_size": HIDDEN},
    "llama4": {"text_config": {**LLAMA4, "intermediate_size": HIDDEN}},
    "mixtral": {"intermediate_size": HIDDEN},
    "qwen3_moe": {"moe_intermediate_size": HIDDEN},
    "granitemoe": {"intermediate_size": HIDDEN},
}


def check(folder, weight, shapes):
    checkpoint = Checkpoint(FolderSource(folder))
    found = find_projections(checkpoint)
    assert found.unread == ()  # a false alarm is as bad as a silent miss
    result = scan(checkpoint, found.projections, top=1)
    best = result.outliers[0]
    assert (best.tower, best.layer, best.expert, best.row, best.col, best.value) == weight
    assert {(t.tower, t.layer, t.expert): t.shape for t in result.tensors} == shapes
    assert len(result.tensors) == len(shapes)


def cases(*names):
    """Return each family of these (all, without any) with each weight to plant in it."""
    return [
        pytest.param(name, weight, id=f"{name}-{'-'.join(str(part) for part in weight[:3] if part is not None)}")
        for name in names or FAMILIES
        for weight in FAMILIES[name].plants
    ]


@pytest.mark.parametrize(("name", "weight"), cases())
def test_the_planted_weight_is_found(tmp_path, name, weight):
    family = FAMILIES[name]
    model = build(family)
    shapes = plant(model, family, weight)
    assert len(shapes) == family.places
    by_tower = {stack.tower: set(stack.downs.values()) for stack in family.stacks}
    assert all(shape in by_tower[tower] for (tower, _, _), shape in shapes.items())
    model.save_pretrained(tmp_path)
    check(tmp_path, weight, shapes)


@pytest.mark.parametrize(("name", "weight"), cases("mistral", "t5", "mixtral", "llama4_text", "gemma3"))
def test_in_shards(tmp_path, name, weight):
    model = build(FAMILIES[name])
    shapes = plant(model, FAMILIES[name], weight)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / INDEX).exists()
    check(tmp_path, weight, shapes)


@pytest.mark.parametrize(
    ("name", "weight"),
    cases("qwen3_moe", "qwen2_moe", "deepseek_v3", "mixtral", "granitemoe", "vit", "llava", "gemma3", "qwen2_vl"),
)
def test_saved_under_the_names_that_the_modules_have(tmp_path, name, weight):
    """Saving converts most families back to the names they were published with, but not where it is told not to."""
    model = build(FAMILIES[name])
    shapes = plant(model, FAMILIES[name], weight)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert set(load_file(tmp_path / SINGLE)) <= set(model.state_dict())
    check(tmp_path, weight, shapes)


@pytest.mark.parametrize("name", SQUARE_CONFIGS)
def test_square_fused_experts(tmp_path, name):
    """Only the architecture tells which way round these lie."""
    family = FAMILIES[name]
    model = build(family, **SQUARE_CONFIGS[name])
    tower, layer, expert, row, _, value = family.plants[0]
    weight = (tower, layer, expert, row, 12, value)
    shapes = plant(model, family, weight)
    assert shapes[tower, layer, expert] == (HIDDEN, HIDDEN)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert any(tensor.shape == (4, HIDDEN, HIDDEN) for tensor in load_file(tmp_path / SINGLE).values())
    check(tmp_path, weight, shapes)


@pytest.mark.parametrize(
    ("name", "weight", "pattern", "replacement"),
    [
        pytest.param(*case.values, pattern, replacement, id=case.id)
        for names, pattern, replacement in [
            (("llava", "gemma3"), r"^vision_tower\.", "vision_tower.vision_model."),
            (("clip_vision",), "^", "vision_model."),
            (("bert_bare",), "^", "bert."),
        ]
        for case in cases(*names)
    ],
)
def test_as_older_releases_named_them(tmp_path, name, weight, pattern, replacement):
    model = build(FAMILIES[name])
    shapes = plant(model, FAMILIES[name], weight)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    renamed = {re.sub(pattern, replacement, tensor): value for tensor, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / SINGLE)
    check(tmp_path, weight, shapes)


def test_qwen3_vl_moe_as_published(tmp_path):
    """Its first checkpoints keep the fused experts [expert, in, out]; transformers turns them when it loads them."""
    family = FAMILIES["qwen3_vl_moe"]
    model = build(family)
    shapes = plant(model, family, family.plants[0])
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    turned = {name: tensor.mT.contiguous() if ".experts." in name else tensor for name, tensor in tensors.items()}
    assert turned["model.language_model.layers.0.mlp.experts.down_proj"].shape == (4, ROUTED, HIDDEN)
    save_file(turned, tmp_path / SINGLE)
    reloaded = transformers.Qwen3VLMoeForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in reloaded.state_dict().items())
    check(tmp_path, family.plants[0], shapes)
