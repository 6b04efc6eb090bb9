"""What the library's own model does with text alone: the stream after each block, the logits, and losses of them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_text import MASK_ID, PROMPT_IDS
from torch import Tensor, nn
from transformers import PreTrainedModel

MASKED_EVERY = 7
CAUSAL_TOLERANCE = 1e-5
RATIO, PERSISTS, COLLAPSE = 100.0, 2, 0.25  # of docs/method.md

Stream = NDArray[np.float32]


@dataclass
class StockRun:
    """One run of so many tokens, those of the decoder where there is one.

    What each block gave, by stack in the order of the run, and the logits [T, vocabulary]. What a block gives is taken
    to be added to what it took where it is no more than its last linear map gave (XLM).
    """

    tokens: int
    blocks: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    logits: Tensor | None = None

    @property
    def last(self) -> str:
        """The stack whose block ran last: the one that makes text."""
        return self.order[-1]

    def numbers(self, stack: str) -> list[int]:
        """Return the numbers of a stack's blocks as they ran."""
        return [number for number, _ in self.blocks[stack]]

    def stream(self, stack: str) -> Stream:
        """Return the stream after each block of a stack, [blocks, T, channels], of several streams side by side."""
        return np.stack([_by_token(given, self.tokens) for _, given in self.blocks[stack]])


def run_text(model: PreTrainedModel, ids: Sequence[int], stacks: Collection[str]) -> StockRun:
    """Run token ids through a model, and watch the blocks of these stacks. Raises whatever the model does.

    Some classes fall over what they do after their logits are there: those are taken as the head gives them.
    """
    given = text_arguments(model, ids)
    done = StockRun(given.get("decoder_input_ids", given["input_ids"]).shape[1])
    head = model.get_output_embeddings()
    with ExitStack() as stack_of_hooks, torch.inference_mode():
        for stack in stacks:
            for number, block in model.get_submodule(stack).named_children():
                linear: dict[str, Tensor] = {}
                for inner in block.modules():
                    if isinstance(inner, nn.Linear):
                        stack_of_hooks.callback(inner.register_forward_hook(_last_keeper(linear)).remove)
                handle = block.register_forward_hook(_keeper(done, stack, int(number), linear), with_kwargs=True)
                stack_of_hooks.callback(handle.remove)
        if isinstance(head, nn.Module):
            stack_of_hooks.callback(head.register_forward_hook(_logits_keeper(done)).remove)
        try:
            done.logits = getattr(model(**given), "logits", None)
        except Exception:
            if done.logits is None:
                raise
    done.logits = None if done.logits is None else done.logits[0]
    return done


def text_arguments(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, Any]:
    """Return what a model is called with for these token ids: an encoder reads the first half, a decoder the second."""
    names = inspect.signature(model.forward).parameters
    several = any(each.kind == each.VAR_KEYWORD for each in names.values())
    given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)])}
    if "use_cache" in names or several:
        given["use_cache"] = False
    if model.config.is_encoder_decoder and "decoder_input_ids" in names:
        first = len(ids) // 2
        given["input_ids"] = torch.tensor([ids[:first]])
        given["decoder_input_ids"] = torch.tensor([[_start(model), *ids[first:-1]]])
    return given


def _start(model: PreTrainedModel) -> int:
    """Return the token that a decoder starts from."""
    configs = (model.config, model.config.get_text_config(decoder=True))
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    tokens = (getattr(config, name, None) for name in names for config in configs)
    return next(token for token in tokens if isinstance(token, int) and token >= 0)


def _last_keeper(linear: dict[str, Tensor]) -> Any:
    def keep(_module: object, _args: object, output: Any) -> None:
        if isinstance(output, Tensor):  # some routers are linear maps that give more
            linear["last"] = output.detach().clone()

    return keep


def _keeper(done: StockRun, stack: str, number: int, linear: Mapping[str, Tensor]) -> Any:
    def keep(_module: object, args: Any, kwargs: Any, output: Any) -> None:
        taken = args[0] if args else kwargs["hidden_states"]
        given = output if isinstance(output, Tensor) else output[0]
        whole = taken + given if "last" in linear and torch.equal(given, linear["last"]) else given.detach().clone()
        done.blocks.setdefault(stack, []).append((number, whole))
        done.order.append(stack)

    return keep


def _logits_keeper(done: StockRun) -> Any:
    def keep(_module: object, _args: object, output: Any) -> None:
        done.logits = output if isinstance(output, Tensor) else None

    return keep


def _by_token(given: Tensor, tokens: int) -> Stream:
    """Return [T, channels] of what a block gave for one row: some pad the tokens, some have several streams."""
    if given.ndim == 3 and given.shape[0] == 1:
        given = given[:, :tokens]
    axis = next(axis for axis, size in enumerate(given.shape) if size == tokens)
    return given.movedim(axis, 0).reshape(tokens, -1).float().numpy()


def ratios(stream: Stream) -> Stream:
    """Return each entry over the median |h| of its layer, [layers, T, channels]."""
    magnitudes = np.abs(stream)
    medians = np.median(magnitudes, axis=(1, 2), keepdims=True)
    return (magnitudes / np.maximum(medians, np.finfo(np.float32).tiny)).astype(np.float32)


def super_activations(stream: Stream) -> set[tuple[int, int]]:
    """Return the (position, channel) of all super activations, by the criterion of docs/method.md."""
    large = ratios(stream) >= RATIO
    persisting = np.logical_and.reduce([large[n : len(large) - PERSISTS + n] for n in range(PERSISTS + 1)])
    return {(int(position), int(channel)) for position, channel in np.argwhere(persisting.any(axis=0))}


def is_causal(model: PreTrainedModel) -> bool:
    """Tell whether another token changes nothing before it, at most positions.

    It is the last but one: XLM does not read all of a prompt that has its token for padding. The library's ProphetNet
    takes the weights of its relative positions of some later ones.
    """
    others = ([*PROMPT_IDS[:-2], token, PROMPT_IDS[-1]] for token in (PROMPT_IDS[-2], PROMPT_IDS[0]))
    one, other = (run_text(model, ids, ()).logits for ids in others)
    assert one is not None
    assert other is not None
    changed = (one[:-2] - other[:-2]).abs().amax(dim=1)
    return bool(changed.median() <= CAUSAL_TOLERANCE * one.abs().max())


def text_loss(model: PreTrainedModel, ids: Sequence[int], *, masked: bool) -> float | None:
    """Return the mean negative log-likelihood in nats a token; null where there are no logits of each token."""
    places = list(range(MASKED_EVERY // 2, len(ids), MASKED_EVERY)) if masked else list(range(len(ids) - 1))
    given = [MASK_ID if masked and place in places else each for place, each in enumerate(ids)]
    wanted = [ids[place] if masked else ids[place + 1] for place in places]
    done = run_text(model, given, ())
    if done.tokens < len(ids):  # a decoder's
        wanted = list(ids[len(ids) - done.tokens :])
        places = list(range(len(wanted)))
    logits = done.logits
    if logits is None or len(logits) < done.tokens:
        return None
    return float(nn.functional.cross_entropy(logits[places].double(), torch.tensor(wanted)))


@contextmanager
def zeroed(parameter: Tensor, place: int) -> Iterator[None]:
    """While the context lasts, have one weight of a parameter at 0."""
    flat = parameter.data.view(-1)
    value = flat[place].item()
    flat[place] = 0.0
    try:
        yield
    finally:
        flat[place] = value
