"""Runs of a model, and of those of its parts that none of them reached, on inputs made to fit."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from cutting import Cutting
from torch import Tensor, nn

TOKENS = 24
PATCHES = 4  # a side
SAMPLES = 1920 * 8  # of sound
MAX_TRIES = 24
IMAGES = ("pixel_values", "image", "images", "input")
SOUNDS = ("input_features", "input_values", "audio_features")
# What goes with an image, where a part asks for it.
SIDES: dict[str, Any] = {
    "grid_thw": [[1, PATCHES, PATCHES]],
    "image_grid_thw": [[1, PATCHES, PATCHES]],
    "image_grid_hw": [[PATCHES, PATCHES]],
    "spatial_shapes": [[PATCHES, PATCHES]],
    "target_sizes": [[PATCHES, PATCHES]],
    "merge_sizes": [1],
    "aspect_ratio_ids": [[1]],
    "feature_lens": [64],
    "aftercnn_lens": [32],
    "query_length": 8,
    "num_patches": PATCHES * PATCHES,
}


def runs(model: nn.Module) -> Iterator[tuple[str, Cutting, list[Tensor]]]:
    """Yield the linear maps and the outputs of each run: of the model, then of each part that no run has reached.

    The name is the part's, empty for the whole model. A part is run on more inputs while each reaches more of it.
    """
    reached: set[str] = set()
    for name, part in model.named_modules():
        matrices = _matrices(part, name)
        if not matrices or matrices & reached or not _can_run(part):
            continue
        for inputs in islice(inputs_for(part), MAX_TRIES):
            done = run(part, inputs)
            touched = set() if done is None else {joined(name, each) for each in done[0].touched} & matrices
            if done is not None and touched - reached:
                reached |= touched
                yield name, *done
            if matrices <= reached:
                break


def _can_run(part: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(part, PreTrainedModel) or any(isinstance(child, nn.ModuleList) for child in part.children())


def _matrices(part: nn.Module, name: str) -> set[str]:
    """Return the names of a part's matrices in numbered blocks."""
    return {
        joined(name, parameter)
        for parameter, value in part.named_parameters(remove_duplicate=False)
        if value.ndim > 1 and any(word.isdigit() for word in joined(name, parameter).split("."))
    }


def joined(part: str, name: str) -> str:
    """Return the name of a parameter of a part, as the whole model calls it."""
    return f"{part}.{name}" if part else name


def run(part: nn.Module, inputs: dict[str, Any]) -> tuple[Cutting, list[Tensor]] | None:
    """Run a part; null where it does not take these inputs."""
    cutting = Cutting(part)
    try:
        with torch.enable_grad(), cutting:
            outputs = [*_tensors(part(**inputs)), *cutting.sums]
    except Exception:  # whatever a model raises for an input that it cannot take
        return None
    return (cutting, outputs) if any(call.read is not None for call in cutting.calls) else None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)


def inputs_for(part: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield keyword arguments that a part may take, by the names of its parameters, the likeliest first."""
    parameters = inspect.signature(part.forward).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [n for n in names if parameters[n].default is inspect.Parameter.empty]
    quiet = {"use_cache": False} if "use_cache" in names else {}
    text = _text(part, names)
    image = next((n for n in names if n in IMAGES), None)
    sees = getattr(part, "main_input_name", "") == "pixel_values" or any(side in names for side in SIDES)
    if image is None and "hidden_states" in names and sees:
        image = "hidden_states"
    sound = next((n for n in names if n in SOUNDS), None)
    if text:
        yield {**text, **quiet}
    if image is not None:
        together = text if "input_ids" in needed or "image_attention_mask" in names else {}
        for pixels in _images(part):
            for sides in _sides(part, names, pixels):
                yield {**together, image: pixels, **sides, **quiet}
    if "flattened_patches" in names:
        yield {"flattened_patches": torch.rand(2, 16, 2 + _patch_channels(part)), **quiet}
    if sound is not None:
        for features in _sounds(part):
            sides = {n: torch.tensor(SIDES[n]) for n in names if isinstance(SIDES.get(n), list)}
            if "input_features_mask" in names:
                sides["input_features_mask"] = torch.ones(features.shape[0], features.shape[-1], dtype=torch.long)
            yield {sound: features, **sides, **quiet}
    yield from _embedded(part, names, needed, quiet)


def _text(part: nn.Module, names: list[str]) -> dict[str, Tensor]:
    config = getattr(part, "config", None)
    tokens = torch.randint(5, 60 if getattr(config, "vocab_size", 300) < 200 else 190, (2, TOKENS))
    text: dict[str, Tensor] = {name: tokens for name in ("input_ids", "decoder_input_ids") if name in names}
    if "decoder_input_ids" in text and not (getattr(config, "is_encoder_decoder", False) or "input_ids" not in text):
        del text["decoder_input_ids"]
    if "protein_input_ids" in names:
        text["protein_input_ids"] = torch.randint(5, 20, (2, TOKENS))
        text["protein_attention_mask"] = torch.ones(2, TOKENS, dtype=torch.long)
    if "bbox" in names:
        text["bbox"] = torch.rand(2, TOKENS, 4).sort(-1).values
    return text


def _images(part: nn.Module) -> Iterator[Tensor]:
    config = getattr(part, "config", None)
    config = getattr(config, "vision_config", config)
    size = _first(config, "image_size", "img_size", default=64)
    patch = _first(config, "patch_size", default=8)
    size = PATCHES * patch if not size or size > 512 else size
    channels = _first(config, "num_channels", "in_channels", "in_chans", default=3)
    frames = _first(config, "temporal_patch_size", default=1)
    count = PATCHES * PATCHES
    width = next((value.shape[-1] for value in part.parameters() if value.ndim == 2), 1)
    yield torch.rand(count, width)
    if any(name in inspect.signature(part.forward).parameters for name in SIDES):
        yield torch.rand(count, channels * frames * patch * patch)
        yield torch.rand(count, channels, patch, patch)
        yield torch.rand(1, count, channels, patch, patch)
        yield torch.rand(count, 2 * patch, 2 * patch, channels)
        yield torch.rand(1, count, width)
        yield torch.rand(1, count, channels * patch * patch)
        yield torch.rand(1, channels, patch, count * patch)
        yield torch.rand(1, 1, 4, channels, size, size)
    yield torch.rand(2, channels, size, size)
    yield torch.rand(2, 1, channels, size, size)
    yield torch.rand(2, count, width)
    yield torch.rand(2, count, channels * patch * patch)
    yield torch.rand(2, channels, 8 * patch, 8 * patch)


def _sides(part: nn.Module, names: list[str], pixels: Tensor) -> Iterator[dict[str, Any]]:
    sides = {name: torch.tensor(value) for name, value in SIDES.items() if name in names and isinstance(value, list)}
    if "image_sizes" in names:
        sides["image_sizes"] = torch.tensor([[pixels.shape[-2], pixels.shape[-1]]] * len(pixels))
    if "aspect_ratio_mask" in names:
        sides["aspect_ratio_mask"] = torch.ones(1, 1, 4, dtype=torch.long)
    if "image_attention_mask" in names and pixels.ndim == 5:
        sides["image_attention_mask"] = torch.ones(len(pixels), TOKENS, pixels.shape[1], dtype=torch.long)
    if "pixel_attention_mask" in names and pixels.ndim == 3:
        sides["pixel_attention_mask"] = torch.ones(pixels.shape[:2], dtype=torch.long)
    if "pixel_position_ids" in names:
        grid = torch.cartesian_prod(torch.arange(PATCHES), torch.arange(PATCHES))
        sides["pixel_position_ids"] = grid.expand(len(pixels), -1, -1)
    yield sides
    if sides:
        yield {}


def _patch_channels(part: nn.Module) -> int:
    config = getattr(part, "config", None)
    vision = getattr(config, "vision_config", config)
    return _first(vision, "patch_embed_hidden_size", default=768)


def _sounds(part: nn.Module) -> Iterator[Tensor]:
    config = getattr(part, "config", None)
    config = getattr(config, "audio_config", config)
    bins = _first(config, "num_mel_bins", "input_dim", "input_feat_size", "feature_size", default=80)
    length = 2 * _first(config, "max_source_positions", default=32)
    for frames in (length, 64, 200):
        yield torch.rand(2, bins, frames)
        yield torch.rand(2, frames, bins)
        yield torch.rand(bins, frames)
    yield torch.rand(2, SAMPLES)
    yield torch.rand(2, 1, SAMPLES)


def _embedded(part: nn.Module, names: list[str], needed: list[str], quiet: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield random hidden states, of each width that the part's first matrices read."""
    sizes = Counter(value.shape[-1] for value in part.parameters() if value.ndim in (1, 2))
    widths = [size for size, _ in sizes.most_common(4)]
    streams = [n for n in ("inputs_embeds", "query_embeds", "hidden_states", "context", "image_features") if n in names]
    wanted = [n for n in needed if n not in streams and n != "self"]
    first = next(part.parameters(), None)
    if first is not None and first.ndim == 3 and streams:  # a convolution over sound
        yield {streams[0]: torch.randn(2, first.shape[1], SAMPLES), **quiet}
    beside = [*wanted, *(["encoder_hidden_states"] if "encoder_hidden_states" in names else [])]
    for width in widths:
        for other in widths if beside else [width]:
            states: dict[str, Tensor] = {name: torch.randn(2, 16, width) for name in streams[:1]}
            states |= {
                name: torch.ones(2, 16, dtype=torch.long) if name.endswith("mask") else torch.randn(2, 16, other)
                for name in beside
            }
            if "input_ids" in names and "query_embeds" in names:
                states |= _text(part, names)
            if states:
                yield {**states, **{n: SIDES[n] for n in needed if isinstance(SIDES.get(n), int)}, **quiet}


def _first(config: Any, *names: str, default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int):
            return value
    return default
