"""All of transformers that this tool stands on beyond its promised interface: building, naming, loading, tying.

A new version of the library may change any of it; `tests/model/test_stock.py` names what it broke.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import LoadStateDictConfig
from transformers.pytorch_utils import Conv1D

from analyzer.base.errors import AnalyzerError, ForwardError, is_out_of_memory, reason_of

LINEARS = (torch.nn.Linear, Conv1D)
"""Linear maps; a Conv1D stores its weight as [in_features, out_features]."""
TOKEN_IDS = ("input_ids", "decoder_input_ids")
OWN = Path(__file__).parents[1]
LIBRARIES = [Path(str(library.__file__)).parent for library in (torch, transformers)]


@contextmanager
def trusting_nobody(what: str, files: str) -> Iterator[None]:
    """Turn whatever third-party code raises on files that nobody vouches for into one line, and warn of nothing.

    `what` begins the line, `files` are those to look at.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"), _unprinted():
            yield
    except (AnalyzerError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the tokenizers library's panics are no Exception
        reason = reason_of(error)
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run"
        elif "ignore_mismatched_sizes" in str(error):
            reason = "its config.json does not fit its weights"
        elif not is_out_of_memory(error):
            reason = f"{reason}; compare its {files} with the original's"
        raise ForwardError(f"{what}: {reason}") from error


@contextmanager
def _unprinted() -> Iterator[None]:
    """Let nothing come to stderr: a panic of the tokenizers library prints itself, whoever catches it."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def raised_by_model(error: BaseException) -> bool:
    """Tell whether an error was raised inside of the libraries, as by a stock model that a config makes no sense to."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    known = [file for file in files if any(file.is_relative_to(each) for each in (OWN, *LIBRARIES))]  # not Python's own
    return bool(known) and not known[-1].is_relative_to(OWN)


def read_config(folder: Path, said: Mapping[str, Any] | None = None) -> Any:
    """Return the config of a folder, or that `said` tells, by the library's class for it.

    No code of the folder is run.
    """
    if said is None:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    else:
        config = transformers.AutoConfig.for_model(**said)
    config._experts_implementation = "eager"  # the one that can be watched; a config cannot name a kernel
    return config


def blocks_told(model: str, folder: Path) -> int | None:
    """Return how many blocks the library takes a folder's config to tell of: Dory's counts attention and MLPs apart."""
    with trusting_nobody(f"cannot load the model {model}", "config.json"):
        told = getattr(read_config(folder).get_text_config(), "num_hidden_layers", None)
    return told if isinstance(told, int) else None


def build_empty(config: Any, dtype: torch.dtype, stored: Collection[str]) -> Any:
    """Return the stock model that a config describes, its parameters on the meta device, ready to be run.

    Where the class for text alone has no place for a block of the `stored` tensors, the one that the config names is
    taken: they are called after it.
    """
    attention = attention_of(config)
    auto, named = _auto_class(config), _named_class(config)
    if auto is not None or named is None:
        auto = auto or transformers.AutoModelForCausalLM  # which says what it does not know
        with _without_weights():
            model = auto.from_config(config, dtype=dtype, attn_implementation=attention, trust_remote_code=False)
            model.tie_weights(recompute_mapping=False)
        if named is None or isinstance(model, named) or Loader(model, dtype).has_blocks_of(stored):
            return model.eval().requires_grad_(False)
    with _without_weights():
        model = named._from_config(config, dtype=dtype, attn_implementation=attention)
        model.tie_weights(recompute_mapping=False)
    return model.eval().requires_grad_(False)


@contextmanager
def _without_weights() -> Iterator[None]:
    """While the context lasts, give what is built parameters on the meta device, which nothing initializes or ties."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        yield


def attention_of(config: Any) -> str:
    """Return the implementation of the attention that says what a model of this config says, if slowly."""
    # Only the eager attention caps its scores as Gemma 2 wants it; but it counts Falcon's ALiBi twice.
    return "sdpa" if config.model_type == "falcon" and config.alibi else "eager"


def attend_by(model: Any, implementation: str) -> bool:
    """Let a stock model compute its attention by this implementation, and tell whether it does so from now on."""
    with suppress(ValueError, ImportError):  # it has none of that name, or none on this machine
        model.set_attn_implementation(implementation)
    return bool(model.config._attn_implementation == implementation)


@contextmanager
def attending_by(model: Any, implementation: str) -> Iterator[None]:
    """While the context lasts, let a stock model compute its attention by this implementation."""
    before = model.config._attn_implementation
    attend_by(model, implementation)
    try:
        yield
    finally:
        attend_by(model, before)


def _auto_class(config: Any) -> Any:
    """Return the auto class: of masked language models for those that are nothing else, else of causal ones or others.

    An encoder-decoder is one unless it names a class of its decoder alone. A model that is for images or sounds as
    well runs with text alone.
    """
    names = " ".join(_architectures(config))
    both = type(config) in transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    if both and config.is_encoder_decoder and "CausalLM" not in names:
        return transformers.AutoModelForSeq2SeqLM
    masked = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if masked and not getattr(config, "is_decoder", False) and (not causal or "CausalLM" not in names):
        return transformers.AutoModelForMaskedLM
    if causal:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return None


def _named_class(config: Any) -> Any:
    """Return the library's class that a config names for itself, where it is one for such configs; else null."""
    for name in _architectures(config):
        found = getattr(transformers, name, None) if name.isidentifier() else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found if getattr(found, "config_class", None) is type(config) else None
    return None


def _architectures(config: Any) -> list[str]:
    """Return the classes that a config names for itself."""
    return [name for name in config.architectures or () if isinstance(name, str)]


def check_text_alone(name: str, model: Any) -> None:
    """Raise ForwardError where the stock model of this name cannot do without more than token ids."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    asked = [each.name for each in named if each.default is each.empty and each.name not in TOKEN_IDS]
    if asked:
        raise ForwardError(
            f"{name} ({model.config.model_type}) asks for {' and '.join(asked)} beside text: it can be scanned, but "
            "not verified"
        )


def input_embedding(name: str, model: Any) -> Any:
    """Return what a stock model reads token ids with. Raises ForwardError where that is no embedding of them."""
    embedding = model.get_input_embeddings()
    if getattr(getattr(embedding, "weight", None), "ndim", 0) != 2:
        raise ForwardError(
            f"{name} ({model.config.model_type}) does not read tokens by one embedding of them, but by "
            f"{type(embedding).__name__}: it can be scanned, but not verified"
        )
    return embedding


def output_head(model: Any) -> Any:
    """Return what makes a stock model's logits, be it that of a whole language model inside of it; null without one."""
    head = model.get_output_embeddings()
    return getattr(model.get_decoder(), "get_output_embeddings", lambda: None)() if head is None else head


def is_masked(model: Any) -> bool:
    """Tell whether a stock model fills in masked tokens.

    XLM and Flaubert have one class for that and for what reads from the left alone, as their configs say.
    """
    config, masked = model.config, transformers.MODEL_FOR_MASKED_LM_MAPPING
    of_table = type(config) in masked and type(model) is masked[type(config)]
    one_way = any(getattr(config, name, False) for name in ("is_encoder_decoder", "is_decoder", "causal"))
    return "MaskedLM" in type(model).__name__ or (of_table and not one_way)


def start_token(model: Any) -> int | None:
    """Return the token that an encoder-decoder's decoder starts from, as it does in generation; null for other models.

    T5's is the one that fills up; where a config names neither a token to start from nor one that begins texts, this
    is it. Raises ForwardError where there is none of these, and where the encoder does not read text.
    """
    config = model.config
    if not config.is_encoder_decoder:
        return None
    if model.main_input_name != "input_ids":
        raise ForwardError(f"the encoder of {type(model).__name__} reads {model.main_input_name}, not text")
    configs = (config, config.get_text_config(decoder=True))
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        for each in configs:
            token = getattr(each, name, None)
            if isinstance(token, int) and token >= 0:
                return token
    raise ForwardError("config.json names no token for the decoder to start from: add its decoder_start_token_id")


def tied_parameters(model: Any) -> Mapping[str, str]:
    """Return, for each parameter that is tied to another, the name of that one."""
    tied: Mapping[str, str] = model.all_tied_weights_keys
    return tied


def initial_value(model: Any, name: str) -> torch.nn.Parameter | None:
    """Return what the library gives a parameter that checkpoints need not store, such as sinusoids of positions.

    Null for others, and for one that would be random.
    """
    if not any(re.search(pattern, name) for pattern in model._keys_to_ignore_on_load_missing or ()):
        return None
    holder, _, last = name.rpartition(".")
    module = model.get_submodule(holder)
    if list(module._parameters) != [last]:
        return None
    found = []
    empty = module._parameters[last]
    for before in (0.0, 1.0):
        given = torch.full(empty.shape, before, dtype=empty.dtype)
        module._parameters[last] = torch.nn.Parameter(given, requires_grad=False)
        model._init_weights(module)
        found.append(module._parameters[last])
    return found[0] if torch.equal(*found) else None


class Loader:
    """Puts a checkpoint's tensors into a stock model by the library's own rules: it renames, fuses and splits them."""

    def __init__(
        self, model: Any, dtype: torch.dtype, device: torch.device | None = None, mapping: list[Any] | None = None
    ) -> None:
        """`mapping` has the rules, null for those of the model's own checkpoints."""
        self._model, self._dtype, self._device = model, dtype, device
        self._mapping = get_model_conversion_mapping(model) if mapping is None else mapping
        self._renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]

    def has_blocks_of(self, names: Collection[str]) -> bool:
        """Tell whether any of these tensors goes into a numbered part of the model."""
        return any(re.search(r"\.\d+\.", target) for target, _ in self.targets(names).values())

    def targets(self, names: Collection[str]) -> dict[str, tuple[str, bool]]:
        """Return the parameter that each tensor goes into, and whether it is that parameter as it is.

        Tensors that the model has no use for are left out.
        """
        state, prefix = self._model.state_dict(), self._model.base_model_prefix
        found = {}
        for name in sorted(names):
            target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, state)
            if target not in state and name in state:
                target, pattern = rename_source_key(name, [], [], prefix, state)
            if target in state:
                found[name] = target, pattern is None
        return found

    def put(self, tensors: Mapping[str, torch.Tensor]) -> tuple[list[tuple[str, Any, Any]], list[str]]:
        """Convert tensors and set the model's parameters.

        Returns (parameter, its shape as stored, its shape as wanted) where these differ, and the parameters that the
        tensors do not make up.
        """
        how = LoadStateDictConfig(
            weight_mapping=self._mapping,
            dtype=self._dtype,
            dtype_plan=self._model._get_dtype_plan(self._dtype),
            device_map={"": self._device},
        )
        report, _ = convert_and_load_state_dict_in_model(self._model, tensors, how)
        return sorted(report.mismatched_keys), sorted(report.conversion_errors)


class BodyOutput(BaseModelOutput):  # type: ignore[misc]
    """Has nothing but the hidden states: of what a body may return beside them, caches and attentions, no head asks."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None
