"""The only importer of torch and transformers: the stock model with hooks on its down projections and blocks.

Zeroing a weight never edits it. Setting W[row, col] to 0 is the same as subtracting W[row, col] * input[..., col]
from output[..., row] of that down projection, so each row of a batch can carry its own set of zeroed weights and
one pass over the model answers for all of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from analyzer.architectures import parse_down_projection
from analyzer.errors import ForwardError, shown
from analyzer.records import Coordinate

Zeroed = Sequence[Coordinate]
"""The weights that one row of a batch runs without."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WINDOW_TOKENS = 512
# What the float32 logits of one batch may take; the loss needs about twice that at its peak. A CPU gains nothing
# from more rows at once (measured: 20 % slower at four times this, for the fresh pages), a GPU does.
CPU_LOGIT_BYTES = 1 << 27
GPU_LOGIT_BYTES = 1 << 30


@dataclass(frozen=True)
class Trace:
    """What one prompt did, in float32; each array's layers are those of `layers`, in their order.

    T is the number of tokens. `entering` and `residual` are the residual stream before the first block and after
    each; `inputs` and `outputs` the down projections'.
    """

    layers: tuple[int, ...]
    entering: NDArray[np.float32]  # [T, hidden_size]
    residual: NDArray[np.float32]  # [layers, T, hidden_size]
    inputs: Mapping[int, NDArray[np.float32]]  # layer -> [T, intermediate_size]
    outputs: Mapping[int, NDArray[np.float32]]  # layer -> [T, hidden_size]


@dataclass(frozen=True)
class _Layer:
    block: torch.nn.Module
    down: torch.nn.Module


class HookedModel:
    """A causal language model of transformers, loaded from a local folder onto one device, with its tokenizer."""

    def __init__(self, folder: Path, *, name: str, device: str = "auto", dtype: str = "auto") -> None:
        """Load model and tokenizer; only safetensors are opened and no code of the repository is run.

        Raises ForwardError where the device is not there, the files cannot be loaded, or they lack weights.
        """
        self.name = name
        self.device = _pick_device(device)
        picked = DTYPES.get(dtype) or (torch.float32 if self.device.type == "cpu" else "auto")
        if (folder / "adapter_config.json").exists():
            raise ForwardError(f"{name} holds an adapter, which would change its weights: merge it, or move it away")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        with _loading(f"the model {name}"), warnings.catch_warnings(action="ignore"):
            self._model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=picked,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                # Named here, so that a config cannot name a kernel to be downloaded.
                attn_implementation="eager",
            )
            # Anything that is missing was filled with random numbers: no result would mean anything.
            if missing := sorted(report["missing_keys"]):
                raise ValueError(f"the checkpoint lacks {missing[0]} ({len(missing)} missing in all)")
            self._model.eval().requires_grad_(False).to(self.device)
        self._folder = folder
        self._tokenizer: Any = None
        self._layers = self._find_layers()

    @property
    def dtype(self) -> str:
        """The name of the weights' dtype while running."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a down projection."""
        return tuple(self._layers)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens the model has positions for; null where its config sets no limit."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        return positions if isinstance(positions, int) else None

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of `text`, with the special tokens that the tokenizer adds.

        Raises ForwardError where the model has no tokenizer or the ids do not fit the model.
        """
        ids: list[int] = list(self._load_tokenizer()(text)["input_ids"])
        limit = self._model.get_input_embeddings().weight.shape[0]
        if any(i >= limit for i in ids):
            raise ForwardError(f"{self.name}: its tokenizer makes ids up to {max(ids)}, its embedding has {limit} rows")
        return ids

    def tokens(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return each token as the text it stands for."""
        tokenizer = self._load_tokenizer()
        return tuple(tokenizer.decode([i]) for i in ids)

    def windows(self, text: str) -> list[list[int]]:
        """Return the token ids of a text in windows of equal length, the last one shorter.

        Each window begins as the tokenizer begins a text (a beginning-of-sequence token, say), because super
        activations sit at the start. Raises ForwardError where the text is too short to have a loss.
        """
        tokenizer = self._load_tokenizer()
        bare: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        prefix: list[int] = self.tokenize(text)
        prefix = prefix[: prefix.index(bare[0])] if bare and bare[0] in prefix else []
        length = WINDOW_TOKENS if self.max_tokens is None else min(WINDOW_TOKENS, self.max_tokens)
        step = length - len(prefix)
        if step < 2:
            raise ForwardError(f"{self.name}: config.json leaves it {length} positions, too few for a loss")
        windows = [prefix + bare[start : start + step] for start in range(0, len(bare), step)]
        windows = [window for window in windows if len(window) > 1]
        if not windows:
            raise ForwardError("the evaluation text has fewer than two tokens: give a longer --text")
        return windows

    def down_shape(self, layer: int) -> tuple[int, int]:
        """Return (rows, cols) = (output, input channels) of a layer's down projection."""
        down = self._layers[layer].down
        first, second = _weight(down).shape
        return (second, first) if _is_conv1d(down) else (first, second)

    def weight_row(self, layer: int, row: int) -> NDArray[np.float64]:
        """Return the weights of one output channel of a down projection, [intermediate_size]."""
        down = self._layers[layer].down
        weights = _weight(down)[:, row] if _is_conv1d(down) else _weight(down)[row]
        return weights.cpu().double().numpy()  # in this order: Apple's GPUs have no float64

    def trace(self, ids: Sequence[int], zeroed: Zeroed = ()) -> Trace:
        """Run one prompt and return what its down projections and its residual stream did.

        Raises ForwardError where an activation is not finite.
        """
        inputs: dict[int, NDArray[np.float32]] = {}
        outputs: dict[int, NDArray[np.float32]] = {}

        def record(layer: int, entered: torch.Tensor, left: torch.Tensor) -> None:
            inputs[layer], outputs[layer] = _numpy(_by_row(entered, 1)[0]), _numpy(_by_row(left, 1)[0])

        streams, entering = self._run(ids, [zeroed], record)
        return Trace(self.layers, entering[0], streams[0], inputs, outputs)

    def residuals(self, ids: Sequence[int], interventions: Sequence[Zeroed]) -> NDArray[np.float32]:
        """Return the residual stream after each block, [interventions, layers, T, hidden_size], in one pass."""
        return self._run(ids, interventions, lambda *_: None)[0]

    def is_causal(self, ids: Sequence[int], trace: Trace) -> bool:
        """Tell whether leaving out the last token changes nothing before it; a loss means nothing otherwise.

        `trace` is that of all the ids.
        """
        whole, shorter = trace.residual[:, :-1], self.residuals(ids[:-1], [()])[0]
        tolerance = max(1e-3, 8 * torch.finfo(self._model.dtype).eps)  # for the rounding of other matrix shapes
        # Medians: neither a super activation nor the rounding of its channel may decide this.
        return bool(np.median(np.abs(whole - shorter)) <= tolerance * np.median(np.abs(whole)))

    def losses(
        self,
        windows: Sequence[Sequence[int]],
        interventions: Sequence[Zeroed],
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[float]:
        """Return the mean next-token negative log-likelihood, in nats, of each intervention over all windows.

        Infinite where it is not a number.
        Several interventions ride in one batch; `progress` is called with the number of (window, intervention)
        pairs just done.
        """
        totals = [0.0] * len(interventions)
        budget = CPU_LOGIT_BYTES if self.device.type == "cpu" else GPU_LOGIT_BYTES
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        for window in windows:
            ids = torch.tensor([window], device=self.device)
            batch = max(1, budget // (len(window) * vocabulary * 4))
            for start in range(0, len(interventions), batch):
                rows = interventions[start : start + batch]
                with self._running(), self._zeroing(rows):
                    logits = self._model(input_ids=ids.expand(len(rows), -1), use_cache=False).logits
                    for offset, row_logits in enumerate(logits):
                        nll = torch.nn.functional.cross_entropy(row_logits[:-1].float(), ids[0, 1:], reduction="sum")
                        totals[start + offset] += nll.item()
                progress(len(rows))
        predicted = sum(len(window) - 1 for window in windows)
        return [total / predicted if math.isfinite(total) else math.inf for total in totals]

    def _run(
        self,
        ids: Sequence[int],
        interventions: Sequence[Zeroed],
        record: Callable[[int, torch.Tensor, torch.Tensor], None],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the prompt once for each intervention, all in one batch.

        Returns the residual stream after each block, [batch, layers, T, hidden_size], and before the first.
        `record` gets the input and output of each down projection.
        """
        streams: dict[int, NDArray[np.float32]] = {}
        entering: list[NDArray[np.float32]] = []
        handles = []
        batch = torch.tensor([list(ids)], device=self.device).expand(len(interventions), -1)
        try:
            # After _zeroing's hooks, so that what is recorded is what the model goes on with.
            with self._zeroing(interventions):
                for layer, modules in self._layers.items():

                    def on_down(_m: object, args: Any, output: torch.Tensor, layer: int = layer) -> None:
                        record(layer, args[0], output)

                    def on_block(_m: object, _a: object, output: Any, layer: int = layer) -> None:
                        hidden = output[0] if isinstance(output, tuple) else output
                        streams[layer] = _numpy(_by_row(hidden, len(interventions)))

                    handles.append(modules.down.register_forward_hook(on_down))
                    handles.append(modules.block.register_forward_hook(on_block))
                first = next(iter(self._layers.values())).block

                def on_first(_m: object, args: Any, kwargs: Any) -> None:
                    hidden = args[0] if args else kwargs["hidden_states"]
                    entering.append(_numpy(_by_row(hidden, len(interventions))))

                handles.append(first.register_forward_pre_hook(on_first, with_kwargs=True))
                with self._running():
                    self._model(input_ids=batch, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        residual = np.stack([streams[layer] for layer in self._layers], axis=1)
        if not np.isfinite(residual).all():
            cure = "its weights hold NaN or Inf" if self.dtype == "float32" else "run with --dtype float32"
            raise ForwardError(f"{self.name}: activations are not finite in {self.dtype}: {cure}")
        return residual, entering[0]

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run without gradients; what goes wrong inside (no memory left, say) becomes one line."""
        try:
            with torch.inference_mode():
                yield
        except (RuntimeError, IndexError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ForwardError(f"{self.name} cannot be run: {shown(reason)}") from error

    @contextmanager
    def _zeroing(self, interventions: Sequence[Zeroed]) -> Iterator[None]:
        """Subtract, while the context lasts, what the zeroed weights of each batch row contribute."""
        by_layer: dict[int, list[tuple[int, int, int]]] = {}
        for batch_row, zeroed in enumerate(interventions):
            for coordinate in zeroed:
                by_layer.setdefault(coordinate.layer, []).append((batch_row, coordinate.row, coordinate.col))
        handles = []
        try:
            for layer, places in by_layer.items():
                down = self._layers[layer].down
                rows, cols = [row for _, row, _ in places], [col for _, _, col in places]
                first, second = (cols, rows) if _is_conv1d(down) else (rows, cols)
                weights = _weight(down)[first, second].float()

                def subtract(
                    _m: object, args: Any, output: torch.Tensor, places: Any = places, weights: torch.Tensor = weights
                ) -> torch.Tensor:
                    # [batch, T, intermediate_size] and [batch, T, hidden_size]; some models flatten the first two.
                    entered, left = _by_row(args[0], len(interventions)), _by_row(output, len(interventions)).clone()
                    for (batch_row, row, col), weight in zip(places, weights, strict=True):
                        exact = left[batch_row, :, row].float() - weight * entered[batch_row, :, col].float()
                        left[batch_row, :, row] = exact.to(left.dtype)
                    return left.reshape(output.shape)

                handles.append(down.register_forward_hook(subtract))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _find_layers(self) -> dict[int, _Layer]:
        found: dict[int, _Layer] = {}
        for name, module in self._model.named_modules():
            parsed = parse_down_projection(name)
            if parsed is None or not isinstance(getattr(module, "weight", None), torch.Tensor):
                continue
            if parsed.expert is not None or parsed.layer in found:
                raise ForwardError(f"{self.name} is a mixture of experts: it can be scanned, but not yet verified")
            found[parsed.layer] = _Layer(self._model.get_submodule(parsed.block), module)
        if not found:
            raise ForwardError(
                f"{self.name}: {type(self._model).__name__} has no down projection that this version knows "
                "(mixtures of experts can be scanned, but not yet verified)"
            )
        return dict(sorted(found.items()))

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
            if not any((self._folder / file).exists() for file in files):
                raise ForwardError(f"{self.name} has no tokenizer: add its tokenizer files to the folder")
            with _loading(f"the tokenizer of {self.name}"), warnings.catch_warnings(action="ignore"):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    self._folder, trust_remote_code=False, local_files_only=True
                )
        return self._tokenizer


def _pick_device(name: str) -> torch.device:
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
def _loading(what: str) -> Iterator[None]:
    """Turn whatever third-party loaders raise on files that nobody vouches for into one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it needs code of its own, which is never run"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its config.json does not fit its weights"
        raise ForwardError(f"cannot load {what}: {shown(reason)}") from error


def _weight(module: torch.nn.Module) -> torch.Tensor:
    assert isinstance(module.weight, torch.Tensor)  # _find_layers made sure
    return module.weight


def _is_conv1d(module: torch.nn.Module) -> bool:
    """Tell whether the weight lies as [in, out] (GPT-2's Conv1D)."""
    return isinstance(module, transformers.pytorch_utils.Conv1D)


def _by_row(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Return [rows, T, channels], also where a model flattened the first two."""
    return tensor.reshape(rows, -1, tensor.shape[-1])


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32).numpy()
