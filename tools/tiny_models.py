"""A tiny model of every type in transformers' mappings of language models, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tiny_configs import filled, shrunk, ungrouped
from tiny_overrides import BASES
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
)
MAX_PARAMETERS = 10_000_000
Fields = dict[str, Any]
# Tried in this order: some classes need fields that are null by default, some as many key heads as heads.
WAYS: tuple[Callable[[Fields], Fields], ...] = (lambda fields: fields, filled, lambda fields: ungrouped(filled(fields)))


class NotBuildable(Exception):  # noqa: N818  a result, not a failure
    """Why a tiny model cannot be built, in one line."""


@dataclass(frozen=True, order=True)
class Kind:
    """A model type, and the class that a mapping names for it."""

    model_type: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.model_type}/{self.class_name}"


def all_kinds() -> list[Kind]:
    """Return every type and class of the mappings, each pair once, in the mappings' order."""
    from transformers.models.auto import modeling_auto

    kinds: dict[Kind, None] = {}
    for mapping in MAPPINGS:
        for model_type, names in getattr(modeling_auto, mapping).items():
            for name in [names] if isinstance(names, str) else names:
                kinds.setdefault(Kind(model_type, name))
    return list(kinds)


def build(kind: Kind) -> PreTrainedModel:
    """Return a tiny model, in evaluation mode and without gradients. Raises NotBuildable with the reason."""
    import transformers

    try:
        model_class = getattr(transformers, kind.class_name)
        config = _tiny_config(kind, model_class)
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(config).eval().requires_grad_(False)
    except NotBuildable:
        raise
    except Exception as error:  # whatever the library's classes raise for what they cannot be built from
        raise NotBuildable(one_line(error)) from error
    _shuffle(model)
    return model


def _shuffle(model: nn.Module) -> None:
    """Give every weight a size at which nonlinearities show: some classes begin with zeros, or nearly."""
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape)
        if parameter.ndim > 1:
            parameter.copy_(noise / max(parameter.shape[-1], parameter.shape[-2]) ** 0.5)
        else:
            parameter.add_(noise / 10)


def _is_causal(kind: Kind) -> bool:
    from transformers.models.auto import modeling_auto

    return bool(getattr(modeling_auto, MAPPINGS[0]).get(kind.model_type) == kind.class_name)


def _tiny_config(kind: Kind, model_class: Any) -> Any:
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[kind.model_type]
    if not issubclass(config_class, model_class.config_class):
        config_class = model_class.config_class  # the class is of a part: the language model alone
    default = config_class(**BASES.get(kind.model_type, {})).to_dict()
    fields = shrunk(default)
    if _is_causal(kind) and default.get("is_decoder") is False and not default.get("is_encoder_decoder"):
        fields["is_decoder"] = True  # else its attention is that of an encoder, and no next token has a meaning
    first: Exception | None = None
    for way in WAYS:
        try:
            config = config_class(**{name: value for name, value in way(fields).items() if name != "model_type"})
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in model_class(config).parameters())
        except Exception as error:
            first = first or error
            continue
        if size > MAX_PARAMETERS:
            raise NotBuildable(f"the smallest has {size:,} parameters")
        config._experts_implementation = "eager"  # experts one by one, so that each is seen at work
        return config
    assert first is not None
    raise first


def one_line(error: BaseException) -> str:
    """Return the first sentence of what went wrong."""
    words = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
