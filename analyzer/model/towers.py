"""Which of a model's towers makes its text, as its stock class has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from analyzer.model.stock import Loader, build_empty, read_config, trusting_nobody


def towers_in_decoder(model: str, folder: Path, towers: Mapping[str, str], stored: Collection[str]) -> list[str]:
    """Return those of the towers, each given by one of its tensors, that are in what the stock class calls the decoder.

    `folder` has the config, `stored` are the names of all tensors. Raises ForwardError where no model can be built.
    """
    with trusting_nobody(f"cannot load the model {model}", "config.json"):
        built = build_empty(read_config(folder), torch.float32, stored)
        targets = Loader(built, torch.float32).targets(towers.values())
        decoder = built.get_decoder()
        name = next((f"{name}." for name, module in built.named_modules() if name and module is decoder), "")
    return [tower for tower, tensor in towers.items() if tensor in targets and targets[tensor][0].startswith(name)]
