"""MLX's checkpoints, type by type: the logits are those of the stock model with the floats that they stand for."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from mlx_models import tiny_model, write_mlx
from models import PROMPT_IDS

from analyzer.analyze.running import open_runnable
from analyzer.base.errors import ArchitectureError
from analyzer.model.layouts.mlx import AS_IT_IS, STACKED
from analyzer.source.folder import FolderSource

FORMATS = Path(__file__).parents[3] / "docs" / "formats.md"


@pytest.mark.parametrize("model_type", sorted([*AS_IT_IS, *STACKED]))
@torch.no_grad()
def test_the_logits_are_those_of_the_stock_model(tmp_path, model_type):
    packed, floats = write_mlx(tiny_model(model_type), tmp_path)
    stock = transformers.AutoModelForCausalLM.from_pretrained(floats, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([PROMPT_IDS])
    expected = stock.eval()(input_ids=ids, use_cache=False).logits[0].numpy()
    runner, _ = open_runnable(FolderSource(packed)).build()
    with runner.running():
        found = runner.blocks.logits(ids).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    assert "MLX-4bit" in runner.notes[0]


@pytest.mark.parametrize("model_type", ["qwen3_next", "jamba", "deepseek_v3"])
def test_other_types_are_refused_by_name(tmp_path, model_type):
    packed, _ = write_mlx(tiny_model("llama"), tmp_path)
    text = (packed / "config.json").read_text()
    (packed / "config.json").write_text(text.replace('"model_type": "llama"', f'"model_type": "{model_type}"'))
    with pytest.raises(ArchitectureError, match=rf"by MLX, whose converters may lay tensors of {model_type} anew"):
        open_runnable(FolderSource(packed)).build()


def test_experts_under_another_name_are_refused(tmp_path):
    packed, _ = write_mlx(tiny_model("qwen3_moe"), tmp_path)
    text = (packed / "config.json").read_text()
    (packed / "config.json").write_text(text.replace('"model_type": "qwen3_moe"', '"model_type": "mixtral"'))
    with pytest.raises(ArchitectureError, match=r"of mixtral anew \(model\.layers\.1\.mlp\.switch_mlp"):
        open_runnable(FolderSource(packed)).build()


def test_the_guide_names_every_type():
    said = FORMATS.read_text().partition("## MLX")[2].partition("##")[0].replace(",", " ").replace(";", " ").split()
    assert {each.rstrip(".") for each in said} >= {*AS_IT_IS, *STACKED}
