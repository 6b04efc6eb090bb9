"""Which of a model's towers makes its text, as its stock class has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from analyzer.model.stock import Loader, build_empty, check_text_alone, read_config, trusting_nobody


def towers_in_parts(
    model: str, folder: Path, towers: Mapping[str, str], stored: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return those of the towers, each given by one of its tensors, that are in what the stock class calls the decoder.

    And those in the encoder, where the model is an encoder-decoder. `folder` has the config, `stored` are the names of
    all tensors. Raises ForwardError where no model can be built, or it asks for more than text.
    """
    with trusting_nobody(f"cannot load the model {model}", "config.json"):
        built = build_empty(read_config(folder), torch.float32, stored)
        check_text_alone(model, built)
        targets = Loader(built, torch.float32).targets(towers.values())
        names = {module: f"{name}." for name, module in built.named_modules() if name}
        decoder = built.get_decoder()
        while hasattr(decoder, "get_decoder") and decoder.get_decoder() is not decoder:
            decoder = decoder.get_decoder()  # of a language model that is an encoder-decoder itself (Florence-2)

    def within(part: Any) -> list[str]:
        named = names.get(part, "")
        return [tower for tower, name in towers.items() if name in targets and targets[name][0].startswith(named)]

    return within(decoder), within(built.get_encoder()) if built.config.is_encoder_decoder else []
