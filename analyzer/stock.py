"""What surrounds a stock transformers model: its auto class, its device, its loaders' errors, its head by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

from analyzer.errors import AnalyzerError, ForwardError, shown


class Answer(torch.nn.Module):
    """Stands in for a model's body while its head runs; whatever part of it the head calls, this is the answer."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.__dict__["hidden"] = hidden

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return self

    def forward(self, *_: Any, **__: Any) -> BaseModelOutput:
        """Return the hidden states, whatever was asked."""
        return _Output(last_hidden_state=self.hidden)


class _Output(BaseModelOutput):  # type: ignore[misc]
    """Has nothing but the hidden states: of what a body may return beside them, caches and attentions, no head asks."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def model_class(config: Any) -> Any:
    """Return the auto class: of masked language models for those that are nothing else, else of causal ones."""
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    names = " ".join(config.architectures or ())
    if masked and not getattr(config, "is_decoder", False) and (not causal or "CausalLM" not in names):
        return transformers.AutoModelForMaskedLM
    return transformers.AutoModelForCausalLM


def pick_device(name: str) -> torch.device:
    """Return the device of a name, auto being CUDA where there is one. Raises ForwardError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= available:
        raise ForwardError(f"there is no device {name} here: use --device auto")
    return device


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever third-party loaders raise on files that nobody vouches for into one line."""
    try:
        yield
    except AnalyzerError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it needs code of its own, which is never run"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its config.json does not fit its weights"
        raise ForwardError(f"cannot load {what}: {shown(reason)}") from error
