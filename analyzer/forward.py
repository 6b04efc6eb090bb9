"""The hooked model: what a prompt does in it, with and without single weights, and the loss of a text.

The stock transformers model runs, its weights brought in block by block (loading.py), its down projections watched and
changed (interception.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from analyzer.architectures import DownProjection
from analyzer.checkpoint import Checkpoint
from analyzer.detection import Entry, Trace
from analyzer.errors import ForwardError, shown
from analyzer.interception import Passage, Zeroed, find_mlps, intercepted
from analyzer.loading import BlockwiseModel
from analyzer.records import Coordinate
from analyzer.scan import read_row, read_weights
from analyzer.stock import Answer, loading, model_class, pick_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WINDOW_TOKENS = 512
MASKED_EVERY = 7  # of a masked language model's text, so that its loss means something
KEEP_BYTES = 1 << 30  # on a CPU, a model whose blocks take no more stays in memory
CPU_ROW_BYTES = 1 << 27  # what the rows that a block runs at once may take; a CPU gains nothing from more
GPU_ROW_BYTES = 1 << 31
PASS_BYTES = 1 << 29  # of all rows' residual streams and attention masks in one pass over the weights
LOGIT_BYTES = 1 << 27


class _Enough(Exception):  # noqa: N818 - not an error
    """Ends a pass over the model before its last block."""


class HookedModel:
    """A language model of transformers on one device, with its tokenizer."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        projections: Sequence[DownProjection],
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        keep_bytes: int | None = None,
    ) -> None:
        """Build the model that `folder`'s config describes, with the checkpoint's weights; its tokenizer comes later.

        Only safetensors are opened and no code of the repository is run. A model whose blocks take at most
        `keep_bytes` keeps them, by default what the device can bear. Raises ForwardError where the device is not there
        or the model cannot be built, CheckpointError where weights are missing.
        """
        self.name = checkpoint.source.model
        self.device = pick_device(device)
        self._folder = folder
        self._checkpoint = checkpoint
        self._projections = {(p.layer, p.expert): p for p in projections}
        self._values: dict[Coordinate, float] = {}
        if (folder / "adapter_config.json").exists():
            raise ForwardError(
                f"{self.name} holds an adapter, which would change its weights: merge it, or move it away"
            )
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        picked = DTYPES.get(dtype) or (torch.float32 if self.device.type == "cpu" else self._stored_dtype())
        with loading(f"the model {self.name}"), warnings.catch_warnings(action="ignore"):
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            config._experts_implementation = "eager"  # the one that can be watched; a config cannot name a kernel
            self._blockwise = BlockwiseModel(
                checkpoint,
                model_class(config),
                config,
                lambda model: [mlp.block for mlp in find_mlps(self.name, model).values()],
                device=self.device,
                dtype=picked,
                keep_bytes=self._bearable() if keep_bytes is None else keep_bytes,
                row_bytes=CPU_ROW_BYTES if self.device.type == "cpu" else GPU_ROW_BYTES,
            )
        self._model = self._blockwise.model
        self.masked = "MaskedLM" in type(self._model).__name__
        self._mlps = find_mlps(self.name, self._model)
        self._tokenizer: Any = None

    @property
    def dtype(self) -> str:
        """The name of the weights' dtype while running."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a down projection."""
        return tuple(self._mlps)

    @property
    def hidden_size(self) -> int:
        """How many channels the residual stream has."""
        return next(iter(self._projections.values())).shape[0]

    @property
    def bytes_read(self) -> int:
        """How many bytes of the checkpoint have been read so far, headers and all."""
        return self._checkpoint.bytes_read

    @property
    def checkpoint_bytes(self) -> int:
        """How many bytes its weight files have."""
        return self._checkpoint.total_bytes

    @property
    def max_tokens(self) -> int | None:
        """How many tokens the model has positions for; null where its config sets no limit."""
        positions = getattr(self._model.config, "max_position_embeddings", None)
        return positions if isinstance(positions, int) else None

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of `text`, with the special tokens that the tokenizer adds, or without them.

        Raises ForwardError where the model has no tokenizer or the ids do not fit the model.
        """
        ids: list[int] = list(self._load_tokenizer()(text, add_special_tokens=special)["input_ids"])
        limit = self._blockwise.vocabulary
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
        bare = self.tokenize(text, special=False)
        prefix: list[int] = self.tokenize(text)
        prefix = prefix[: prefix.index(bare[0])] if bare and bare[0] in prefix else []
        length = WINDOW_TOKENS if self.max_tokens is None else min(WINDOW_TOKENS, self.max_tokens)
        step = length - len(prefix)
        if step < 2:
            raise ForwardError(f"{self.name}: config.json leaves it {length} positions, too few for a loss")
        windows = [prefix + bare[start : start + step] for start in range(0, len(bare), step)]
        windows = [window for window in windows if self.predicted([window])]
        if not windows:
            raise ForwardError("the evaluation text has fewer than two tokens: give a longer --text")
        return windows

    def predicted(self, windows: Sequence[Sequence[int]]) -> int:
        """Return how many tokens the loss over these windows is a mean of."""
        return sum(len(self._targets(window)[0]) for window in windows)

    def down_shape(self, layer: int, expert: int | None) -> tuple[int, int]:
        """Return (rows, cols) = (output, input channels) of a down projection."""
        return self._projections[layer, expert].shape

    def weight_row(self, layer: int, expert: int | None, row: int) -> NDArray[np.float64]:
        """Return the weights of one output channel of a down projection, [intermediate_size]."""
        return read_row(self._checkpoint, self._projections[layer, expert], row)

    def trace(
        self,
        ids: Sequence[int],
        zeroed: Sequence[Coordinate] = (),
        *,
        enough: Callable[[tuple[int, ...], NDArray[np.float32]], bool] = lambda *_: False,
    ) -> Trace:
        """Run one prompt and return what its down projections and its residual stream did.

        `enough` is asked after each block, with the layers and the residual stream so far, whether to stop there.
        Raises ForwardError where an activation is not finite.
        """
        entries: dict[int, list[Entry]] = {}

        def record(passage: Passage) -> None:
            entry = Entry(
                passage.expert,
                passage.tokens.cpu().numpy(),
                _numpy(passage.entered),
                _numpy(passage.routed),
            )
            entries.setdefault(passage.layer, []).append(entry)

        streams, entering, outputs = self._run([ids], [zeroed], record=record, enough=enough)
        layers = self.layers[: streams.shape[1]]
        kept = {layer: tuple(entries[layer]) for layer in layers}
        return Trace(layers, entering[0], streams[0], kept, {layer: outputs[layer] for layer in layers})

    def residuals(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Sequence[Coordinate]],
        *,
        last_layer: int | None = None,
    ) -> NDArray[np.float32]:
        """Return the residual stream after each block, [rows, layers, T, hidden_size], in one pass.

        Row i runs prompts[i], all of one length, without the weights of interventions[i]; `last_layer` ends the pass.
        """
        return self._run(prompts, interventions, last_layer=last_layer)[0]

    def is_causal(self, ids: Sequence[int], trace: Trace) -> bool:
        """Tell whether leaving out the last token changes nothing before it; a loss means nothing otherwise.

        `trace` is that of all the ids.
        """
        whole = trace.residual[:, :-1]
        shorter = self.residuals([ids[:-1]], [()], last_layer=trace.layers[-1])[0]
        tolerance = max(1e-3, 8 * torch.finfo(self._model.dtype).eps)  # for the rounding of other matrix shapes
        # Medians: neither a super activation nor the rounding of its channel may decide this.
        return bool(np.median(np.abs(whole - shorter)) <= tolerance * np.median(np.abs(whole)))

    def losses(
        self,
        windows: Sequence[Sequence[int]],
        interventions: Sequence[Sequence[Coordinate]],
        progress: Callable[[int], object] = lambda _: None,
    ) -> list[float]:
        """Return the mean negative log-likelihood, in nats, of each intervention over all windows.

        Of the next token, or of every so manieth in its place where the model is a masked one; infinite where it is
        not a number. All windows and interventions ride as rows of one batch, split only where memory asks for it;
        `progress` is called with the number of (window, intervention) pairs just done.
        """
        totals = [0.0] * len(interventions)
        for length in sorted({len(window) for window in windows}, reverse=True):
            same = [window for window in windows if len(window) == length]
            pairs = [(window, index) for window in same for index in range(len(interventions))]
            rows = max(1, PASS_BYTES // (4 * length * (3 * self.hidden_size + length)))
            for start in range(0, len(pairs), rows):
                part = pairs[start : start + rows]
                for (_, index), nll in zip(part, self._likelihoods(part, interventions, progress), strict=True):
                    totals[index] += nll
        predicted = self.predicted(windows)
        return [total / predicted if math.isfinite(total) else math.inf for total in totals]

    def _likelihoods(
        self,
        pairs: Sequence[tuple[Sequence[int], int]],
        interventions: Sequence[Sequence[Coordinate]],
        progress: Callable[[int], object],
    ) -> Iterator[float]:
        """Yield the summed negative log-likelihood of each (window, intervention), all in one pass over the blocks."""
        ids = torch.tensor([self._masked_ids(window) for window, _ in pairs], device=self.device)
        zeroed = self._with_values([interventions[index] for _, index in pairs])
        blockwise = self._blockwise
        with self._running():
            with (
                self._once_for_all_alike([window for window, _ in pairs], zeroed),
                intercepted(self._mlps, zeroed, lambda: blockwise.rows, ids.shape[1]),
            ):
                hidden = blockwise.body(ids)
            step = max(1, LOGIT_BYTES // (4 * blockwise.vocabulary))
            for row, (window, _) in enumerate(pairs):
                places, targets = self._targets(window)
                total = 0.0
                for start in range(0, len(places), step):
                    logits = self._head(hidden[row, places[start : start + step]][None])
                    total += torch.nn.functional.cross_entropy(
                        logits.float(), torch.tensor(targets[start : start + step], device=self.device), reduction="sum"
                    ).item()
                yield total
                progress(1)

    @contextmanager
    def _once_for_all_alike(self, windows: Sequence[Sequence[int]], zeroed: Sequence[Zeroed]) -> Iterator[None]:
        """Run rows of the same window once for all of them, up to the block that first zeroes a weight of theirs."""
        layers = {mlp.block: layer for layer, mlp in self._mlps.items()}
        of_window = {tuple(window): number for number, window in enumerate(windows)}
        numbers = [of_window[tuple(window)] for window in windows]
        whole = self._blockwise.kind

        def kind(block: str, row: int) -> Hashable:
            return numbers[row], frozenset(c for c in zeroed[row] if c.layer <= layers[block])

        try:
            self._blockwise.kind = kind
            yield
        finally:
            self._blockwise.kind = whole

    def _targets(self, window: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the positions whose outputs are judged, and the token that each should predict."""
        if not self.masked:
            return list(range(len(window) - 1)), list(window[1:])
        places = list(range(MASKED_EVERY // 2, len(window), MASKED_EVERY))
        return places, [window[place] for place in places]

    def _masked_ids(self, window: Sequence[int]) -> list[int]:
        ids = list(window)
        if self.masked:
            mask = self._load_tokenizer().mask_token_id
            if mask is None:
                raise ForwardError(f"{self.name} is a masked language model, but its tokenizer has no mask token")
            for place in self._targets(window)[0]:
                ids[place] = mask
        return ids

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, vocabulary] of the stock model's own head for [1, n, hidden_size]."""
        name = self._blockwise.body_name
        body = self._model.get_submodule(name)
        try:
            setattr(self._model, name, Answer(hidden))
            logits: torch.Tensor = self._model(
                input_ids=torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
            ).logits[0]
            return logits
        finally:
            setattr(self._model, name, body)

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Sequence[Coordinate]],
        *,
        record: Callable[[Passage], None] | None = None,
        enough: Callable[[tuple[int, ...], NDArray[np.float32]], bool] = lambda *_: False,
        last_layer: int | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        """Run each prompt without its weights, all in one batch.

        Returns the residual stream after each block, [rows, layers, T, hidden_size], and before the first, and where
        `record` gets what goes through the down projections, what each MLP of the first row adds.
        """
        streams: dict[int, NDArray[np.float32]] = {}
        outputs: dict[int, NDArray[np.float32]] = {}
        entering: list[NDArray[np.float32]] = []
        handles = []
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.device)
        zeroed = self._with_values(interventions)
        try:
            with intercepted(self._mlps, zeroed, lambda: self._blockwise.rows, ids.shape[1], record):
                for layer, mlp in self._mlps.items():
                    block = self._model.get_submodule(mlp.block)

                    def on_whole(_m: object, _a: object, output: Any, layer: int = layer) -> None:
                        left = output if isinstance(output, torch.Tensor) else output[0]
                        outputs[layer] = _numpy(left.reshape(-1, left.shape[-1]))

                    def on_block(_m: object, _a: object, output: Any, layer: int = layer) -> None:
                        hidden = output if isinstance(output, torch.Tensor) else output[0]
                        streams[layer] = _numpy(hidden.reshape(len(prompts), -1, hidden.shape[-1]))
                        seen = tuple(streams)
                        if layer == last_layer or enough(seen, np.stack([streams[n][0] for n in seen])):
                            raise _Enough

                    if record is not None:
                        handles.append(mlp.whole.register_forward_hook(on_whole))
                    handles.append(block.register_forward_hook(on_block))
                first = self._model.get_submodule(next(iter(self._mlps.values())).block)

                def on_first(_m: object, args: Any, kwargs: Any) -> None:
                    hidden = args[0] if args else kwargs["hidden_states"]
                    entering.append(_numpy(hidden.reshape(len(prompts), -1, hidden.shape[-1])))

                handles.append(first.register_forward_pre_hook(on_first, with_kwargs=True))
                with self._running():
                    self._blockwise.body(ids)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        residual = np.stack([streams[layer] for layer in self._mlps if layer in streams], axis=1)
        if not np.isfinite(residual).all():
            cure = "its weights hold NaN or Inf" if self.dtype == "float32" else "run with --dtype float32"
            raise ForwardError(f"{self.name}: activations are not finite in {self.dtype}: {cure}")
        return residual, entering[0], outputs

    def _with_values(self, interventions: Sequence[Sequence[Coordinate]]) -> list[Zeroed]:
        """Return the weights to zero with their values as the model has them."""
        unknown = {c for weights in interventions for c in weights} - self._values.keys()
        read = read_weights(
            self._checkpoint, list(self._projections.values()), sorted(unknown, key=lambda c: c.sort_key)
        )
        for coordinate, value in read.items():
            self._values[coordinate] = float(torch.tensor(value, dtype=torch.float64).to(self._model.dtype))
        return [{c: self._values[c] for c in weights} for weights in interventions]

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Run without gradients; what goes wrong inside (no memory left, say) becomes one line."""
        try:
            with torch.inference_mode():
                yield
        except (RuntimeError, IndexError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ForwardError(f"{self.name} cannot be run: {shown(reason)}") from error

    def _bearable(self) -> int:
        """Return how many bytes of blocks may stay on the device."""
        if self.device.type == "cuda":
            return int(0.6 * torch.cuda.mem_get_info(self.device)[0])
        return KEEP_BYTES

    def _stored_dtype(self) -> torch.dtype:
        """Return the dtype of the down projections as they are stored; float32 for float64, which GPUs lack."""
        names = {"F16": torch.float16, "BF16": torch.bfloat16}
        return names.get(next(iter(self._projections.values())).matrix.encoding.name, torch.float32)

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
            if not any((self._folder / file).exists() for file in files):
                raise ForwardError(f"{self.name} has no tokenizer: add its tokenizer files to the folder")
            with loading(f"the tokenizer of {self.name}"), warnings.catch_warnings(action="ignore"):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                    self._folder, trust_remote_code=False, local_files_only=True
                )
        return self._tokenizer


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a copy: models go on to change their activations in place (Falcon adds attention to what its MLP adds)."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()
