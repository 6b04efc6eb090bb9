"""Scans of models that transformers itself wrote."""

import pytest
from rankings import sort_all

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.shards import INDEX
from analyzer.projections.down_projections import down_projections
from analyzer.projections.projection import in_layers
from analyzer.scan.scanner import scan
from analyzer.source.folder import FolderSource


def open_folder(folder):
    return Checkpoint(FolderSource(folder))


def scan_folder(folder, *, layers=None, top=20):
    checkpoint = open_folder(folder)
    projections = down_projections(checkpoint)
    return scan(checkpoint, projections if layers is None else in_layers("m", projections, layers), top=top)


def found(result):
    """Return where the outliers are and what they are, best first."""
    return [(o.layer, o.expert, o.row, o.col, o.value) for o in result.outliers]


@pytest.mark.parametrize(("dtype", "shard_size"), [("bfloat16", "5GB"), ("float32", "20KB")])
def test_an_outlier_planted_in_a_llama(tmp_path, dtype, shard_size):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=40, num_hidden_layers=4, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[5, 33] = -3.5
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / INDEX).exists() == (shard_size == "20KB")
    result = scan_folder(tmp_path)
    assert found(result)[0] == (2, None, 5, 33, -3.5)
    assert (result.model_type, result.num_layers) == ("llama", 4)
    assert (result.hidden_size, result.intermediate_size) == (16, 40)
    downs = {
        (layer, None): block.mlp.down_proj.weight.detach().double().numpy()
        for layer, block in enumerate(model.model.layers)
    }
    assert found(result) == sort_all(downs)[:20]


def test_an_outlier_planted_in_a_gpt2(tmp_path):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=32))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[50, 7] = 2.5  # Conv1D: [in, out]
    model.save_pretrained(tmp_path)
    result = scan_folder(tmp_path)
    assert found(result)[0] == (1, None, 7, 50, 2.5)
    assert (result.model_type, result.num_layers) == ("gpt2", 3)
    assert (result.hidden_size, result.intermediate_size) == (16, 64)
    downs = {
        (layer, None): block.mlp.c_proj.weight.detach().double().numpy().T
        for layer, block in enumerate(model.transformer.h)
    }
    assert found(result) == sort_all(downs)[:20]
