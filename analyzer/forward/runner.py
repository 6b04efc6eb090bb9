"""Runs prompts through a model, each row of a batch with its own edits: what blocks and MLPs do, or the last states.

The stock model's weights come block by block (the room `model`); its down projections are watched and changed
(interception.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analyzer.base.errors import AnalyzerError, ForwardError, reason_of, shown
from analyzer.base.records import Coordinate, Place
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.forward.blocks.mlps import Block, Record, beside_stack, blocks_of, find_blocks, latent_note
from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.forward.interception import EnoughError, OtherWidthError, Watched, intercepted
from analyzer.forward.trace import Stream, Trace
from analyzer.model.blocks import BlockwiseModel
from analyzer.model.devices import bearable_bytes, pick_device, pick_dtype, row_bytes
from analyzer.model.layouts.gguf import gguf_config, gguf_notes
from analyzer.model.rows import Kind, UnsplittableError, Untouched
from analyzer.model.stock import is_masked, raised_by_model, read_config, trusting_nobody
from analyzer.model.weights import ChangeTensor
from analyzer.projections.projection import DownProjection
from analyzer.projections.weights import read_row, read_weights

Enough = Callable[[tuple[int, ...], NDArray[np.float32]], bool]
"""Asked after each block, with the layers and the first row's residual stream so far, whether to stop there."""

POSITIONS_KEYS = (*(f"max_{of}position_embeddings" for of in ("", "encoder_", "decoder_")), "max_seq_len")
STREAM_BYTES = 1 << 28  # of the residual streams that one pass records


class Runner:
    """A language model of transformers on one device that runs token ids; see the room `model` for its tokenizer."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        projections: Sequence[DownProjection],
        folder: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        keep_bytes: int | None = None,
        change: ChangeTensor | None = None,
        before: Sequence[DownProjection] = (),
        others: Sequence[DownProjection] = (),
        encoder_alone: bool = False,
    ) -> None:
        """Build the model that `folder`'s config describes, with the checkpoint's weights.

        Only safetensors are opened and no code of the repository is run. A model whose blocks take at most
        `keep_bytes` keeps them, by default what the device can bear. `change` is asked for what to load in place of
        each tensor of a block. `before` are down projections of an encoder that runs before the tower of the
        `projections`, `others` those of towers that text alone does not reach. With `encoder_alone` an encoder-decoder
        runs no further than its encoder. Raises ForwardError where the device is not there or the model cannot be
        built, CheckpointError where weights are missing.
        """
        self.checkpoint = checkpoint
        self.name = checkpoint.source.model
        self._projections = {projection.place: projection for projection in projections}
        self.hidden_size = next((each for each in projections if each.writes is None), projections[0]).shape[0]
        """How many channels the residual stream has; of several, each."""
        self._values: dict[Coordinate, float] = {}
        if (folder / "adapter_config.json").exists():
            raise ForwardError(f"{self.name} holds an adapter, which would change its weights: merge or move it away")
        place = pick_device(device)
        self.stack: tuple[Block, ...] = ()
        """Every block in the order in which they run, whether it has an MLP or not."""
        self.tower = projections[0].tower

        def find_stack(model: torch.nn.Module, targets: Mapping[str, str]) -> tuple[list[str], tuple[str, ...]]:
            self.stack = find_blocks(self.name, model, targets, projections)
            blocks = [block.name for block in self.stack]
            if lost := next((each.name for each in before if each.name not in targets), None):
                raise ForwardError(f"{self.name}: config.json leaves no place for {shown(lost)}: correct it")
            first = blocks_of(model, targets, before)
            beside = (targets[other.name] for other in others if other.name in targets)
            return [*first, *blocks], beside_stack(blocks[0], beside)

        said_by = "metadata" if checkpoint.metadata else "config.json"
        with trusting_nobody(f"cannot load the model {self.name}", said_by):
            self.blocks = BlockwiseModel(
                checkpoint,
                read_config(folder, gguf_config(checkpoint) if checkpoint.metadata else None),
                find_stack,
                device=place,
                dtype=pick_dtype(dtype, place, next(iter(self._projections.values())).matrix.encoding.name),
                keep_bytes=bearable_bytes(place) if keep_bytes is None else keep_bytes,
                row_bytes=row_bytes(place),
                change=change,
                encoder_alone=encoder_alone,
            )
        if change is not None and (self.blocks.encodings or checkpoint.metadata):
            raise ForwardError(f"{self.name} is quantized: its weights cannot be changed as they are loaded, yet")
        self.masked = is_masked(self.blocks.model)
        self.notes = (*gguf_notes(checkpoint.metadata), *self.blocks.notes(), *latent_note(self.stack))
        """Where what runs is not all that the model does, or not all of it is followed, a line each."""
        self.one_by_one = False
        """Rows of a batch go through the model one at a time: it keeps something from block to block (checking.py)."""

    @property
    def device(self) -> str:
        """The kind of the device it runs on."""
        return self.blocks.device.type

    @property
    def dtype(self) -> str:
        """The name of the weights' dtype while running."""
        return str(self.blocks.dtype).removeprefix("torch.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, those without a down projection too."""
        return tuple(layer for block in self.stack for layer in block.layers)

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        return int(self.blocks.vocabulary)

    @property
    def max_tokens(self) -> int | None:
        """How many tokens the model has positions for; null where its config sets no limit."""
        config = self.blocks.model.config.get_text_config()
        limits = [limit for key in POSITIONS_KEYS if isinstance(limit := getattr(config, key, None), int)]
        if not limits or min(limits) <= 0:  # XLNet says -1
            return None
        return min(limits) * (1 if self.start is None else 2)  # each half has so many

    @property
    def start(self) -> int | None:
        """The token that the decoder starts from, null where no decoder is judged after an encoder."""
        return None if self.blocks.encoder_alone else self.blocks.start

    @property
    def has_loss(self) -> bool:
        """Whether the tower that runs says something: an encoder alone has no logits."""
        return not self.blocks.encoder_alone

    def length(self, ids: Sequence[int]) -> int:
        """Return how many positions the tower that is judged has, of a row of these ids."""
        return len(ids) - self.blocks.read_first(len(ids))

    def weight_row(self, place: Place, row: int) -> NDArray[np.float64]:
        """Return the weights of one output channel of a down projection, [intermediate_size]."""
        projection = self._projections[place]
        if self.blocks.change is not None:
            return self._as_loaded(projection)[row].double().numpy()
        return read_row(self.checkpoint, projection, row)

    def trace(
        self, ids: Sequence[int], intervention: Intervention = UNTOUCHED, *, enough: Enough = lambda *_: False
    ) -> Trace:
        """Run one prompt and return what its down projections and its residual stream did.

        Raises ForwardError where an activation is not finite.
        """
        watched, residual = self._watch([ids], [intervention], inside=True, enough=enough)
        layers = tuple(layer for layer in self.layers if layer in watched.streams)
        entries = {layer: watched.weighed(layer) for layer in layers if layer in watched.entries}
        outputs, added = (
            {layer: np.stack(by_layer[layer]) for layer in entries} for by_layer in (watched.outputs, watched.added)
        )
        if changed := list(watched.entering)[1:]:
            words = "by what is in no block: that is no write of theirs"
            self._note(f"the stream is changed before blocks {_listed(changed)} {words}")
        return Trace(layers, watched.before(layers), residual[0], entries, outputs, added)

    def streams(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Intervention],
        *,
        last_layer: int | None = None,
    ) -> Iterator[Stream]:
        """Yield the residual stream after each block, [layers, T, hidden_size], of each prompt with its intervention.

        Prompts of one length that follow each other ride in one pass, as many as memory bears; `last_layer` ends it.
        """
        pairs, watch = zip(prompts, interventions, strict=True), partial(self._watch, last_layer=last_layer)
        for tokens, alike in groupby(pairs, key=lambda pair: len(pair[0])):
            rows, most = list(alike), max(1, STREAM_BYTES // (4 * len(self.layers) * tokens * self.hidden_size))
            for start in range(0, len(rows), most):
                for _, residual in self._together(watch, *zip(*rows[start : start + most], strict=True)):
                    yield from residual

    def is_causal(self, ids: Sequence[int], trace: Trace) -> bool:
        """Tell whether leaving out the last token changes nothing before it; a loss means nothing otherwise.

        `trace` is that of all the ids.
        """
        # Of an even number of ids, one more leaves to an encoder the half that it read.
        longer = self.start is not None and len(ids) % 2 == 0
        other = (*ids, ids[-1]) if longer else ids[:-1]
        (stream,) = self.streams([other], [UNTOUCHED], last_layer=trace.layers[-1])
        shared = min(self.length(ids), self.length(other))
        whole, stream = trace.residual[:, :shared], stream[:, :shared]
        tolerance = max(1e-3, 8 * torch.finfo(self.blocks.dtype).eps)  # for the rounding of other matrix shapes
        # Medians: neither a super activation nor the rounding of its channel may decide this.
        return bool(np.median(np.abs(whole - stream)) <= tolerance * np.median(np.abs(whole)))

    def states(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Intervention],
        untouched: Untouched | None = None,
    ) -> torch.Tensor:
        """Return what goes into the output head, [rows, T, hidden_size], of prompts of one length.

        Rows of a prompt run once up to the first edit, and not so far where `untouched` keeps that of a call before.
        """

        def run(prompts: Sequence[Sequence[int]], interventions: Sequence[Intervention]) -> torch.Tensor:
            kept = self.blocks.rows.remembering(None if self.one_by_one else untouched)
            with kept, self.running(), self._edited(prompts, interventions) as ids:
                return self.blocks.body(ids)

        return torch.cat(self._together(run, prompts, interventions))

    def _together(
        self, run: Callable[..., Any], prompts: Sequence[Sequence[int]], interventions: Sequence[Intervention]
    ) -> list[Any]:
        """Return what `run` gives for all rows at once, or for each of them where they do not run together."""
        if not self.one_by_one:
            with suppress(UnsplittableError):
                return [run(prompts, interventions)]
            self.one_by_one = True
        return [run([ids], [edits]) for ids, edits in zip(prompts, interventions, strict=True)]

    def streams_and_states(
        self, prompts: Sequence[Sequence[int]], interventions: Sequence[Intervention]
    ) -> tuple[NDArray[np.float32], torch.Tensor]:
        """Return what `streams` and `states` do of prompts of one length, all of them in one pass."""
        states: list[torch.Tensor] = []
        _, residual = self._watch(prompts, interventions, run=lambda ids: states.append(self.blocks.body(ids)))
        return residual, states[0]

    def stock(self, ids: Sequence[int], *, last_layer: int | None = None) -> tuple[Stream, torch.Tensor | None]:
        """Run one prompt through the stock model's own forward, head and all, with its blocks' weights on demand.

        Returns the residual stream after each block, [layers, T, hidden_size], and the logits [T, vocabulary], null
        where `last_layer` ends the run or the model says nothing.
        """
        logits: list[torch.Tensor] = []

        def whole(ids: torch.Tensor) -> None:
            logits.append(self.blocks.logits(ids))

        run = whole if self.has_loss else None
        _, residual = self._watch([ids], [UNTOUCHED], run=run, last_layer=last_layer)
        return residual[0], logits[0] if logits else None

    def some_weight(self, layer: int) -> Coordinate:
        """Return where the first weight is of this layer's MLP, or of the next one's that has one."""
        return Coordinate.at(min(self._projections, key=lambda place: (place[1] < layer, place)), 0, 0)

    def likelihoods(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each target [n] after its state [n, hidden_size], in nats, [n] float32.

        The vocabulary is gone through in slices: there never is a tensor of all logits.
        """
        with self.running():
            return self.blocks.output.likelihoods(states, targets.to(states.device)).cpu()

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, vocabulary] of states [n, hidden_size]."""
        with self.running():
            return self.blocks.head(states[None])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run without gradients; what goes wrong inside (no memory left, say) becomes one line.

        A fault of our own code, or of a caller's, stays what it is.
        """
        try:
            with torch.inference_mode(), self.blocks.cost.running():
                yield
        except (AnalyzerError, EnoughError):
            raise
        except Exception as error:
            if not (isinstance(error, RuntimeError | IndexError | MemoryError) or raised_by_model(error)):
                raise
            kind = self.checkpoint.model_type
            raise ForwardError(f"{self.name} ({kind}) cannot be run: {reason_of(error)}") from error

    def _watch(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Intervention],
        *,
        inside: bool = False,
        enough: Enough = lambda *_: False,
        last_layer: int | None = None,
        run: Callable[[torch.Tensor], object] | None = None,
    ) -> tuple[Watched, NDArray[np.float32]]:
        """Run each prompt with its edits, all in one batch, through the model's body or through `run`.

        Returns what was seen, of the MLPs only where one wants to see `inside`, and the residual stream after each
        block, [rows, layers, T, hidden_size].
        """
        several = getattr(self.blocks.model.config.get_text_config(), "hidden_size", None) == self.hidden_size
        watched = Watched(len(prompts), self.length(prompts[0]), self.hidden_size, several=several)

        def ends(layer: int) -> bool:
            seen = tuple(watched.streams)
            return layer == last_layer or enough(seen, np.stack([watched.streams[n][0] for n in seen]))

        record = watched.on_passage if inside else None
        try:
            # What watches is hung up after what changes, and so sees what the model goes on with.
            with self._edited(prompts, interventions, record) as ids, ExitStack() as stack:
                for handle in (each for block in self.stack for each in watched.hung_up(block, ends, inside=inside)):
                    stack.callback(handle.remove)
                with suppress(EnoughError), self.running():
                    (run or self.blocks.body)(ids)
                    self._leave_out([block for block in self.stack if block.layers[0] not in watched.streams])
        except OtherWidthError as error:
            self._take_for_latent(error.width)
            return self._watch(prompts, interventions, inside=inside, enough=enough, last_layer=last_layer, run=run)
        if not watched.streams:
            raise ForwardError(f"{self.name}: text alone does not reach the tower {shown(str(self.tower))}")
        residual = np.stack([watched.streams[layer] for layer in self.layers if layer in watched.streams], axis=1)
        if not np.isfinite(residual).all():
            cure = "its weights hold NaN or Inf, or its config.json is not theirs"
            cure = cure if self.dtype == "float32" else "run in float32 (--dtype)"
            raise ForwardError(f"{self.name}: activations are not finite in {self.dtype}: {cure}")
        return watched, residual

    def _take_for_latent(self, width: int) -> None:
        """Take what all MLPs write for a latent, as the stream has another width (MobileBERT)."""
        self.hidden_size, self.stack = width, tuple(replace(block, is_latent=True) for block in self.stack)
        self.notes += tuple(latent_note(self.stack))

    def _leave_out(self, blocks: Sequence[Block]) -> None:
        """Take blocks that text alone does not reach for no part of the stack."""
        if blocks:
            self.stack = tuple(block for block in self.stack if block not in blocks)
            layers = _listed(layer for block in blocks for layer in block.layers)
            self._note(f"blocks {layers} do not run with text alone: nothing is said of them")

    def _note(self, line: str) -> None:
        self.notes += () if line in self.notes else (line,)

    @contextmanager
    def _edited(
        self,
        prompts: Sequence[Sequence[int]],
        interventions: Sequence[Intervention],
        record: Record | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the ids, [rows, T]; while the context lasts, each row has its edits, and what is alike runs once."""
        layers = {block.name: block.layers for block in self.stack}

        def kind(block: str, row: int) -> Kind:
            here = layers.get(block, (-1,))
            return Kind(tuple(prompts[row]), interventions[row].before(here[0]), interventions[row].within(here))

        values, tokens = self._values_of(interventions), self.length(prompts[0])
        with (
            self.blocks.rows.told_apart(kind),
            intercepted(self.stack, interventions, values, lambda: self.blocks.rows.in_hand, tokens, record),
        ):
            yield torch.tensor([list(prompt) for prompt in prompts], device=self.blocks.device)

    def _values_of(self, interventions: Sequence[Intervention]) -> dict[Coordinate, float]:
        """Return the values, as the model has them, of the weights that edits need."""
        edited = {c for intervention in interventions for edit in intervention.edits for c in edit.weights}
        unknown = sorted(edited - self._values.keys(), key=lambda c: c.sort_key)
        values = read_weights(self.checkpoint, list(self._projections.values()), unknown)
        if self.blocks.change is not None:
            values = {c: self._as_loaded(self._projections[c.place])[c.row, c.col].item() for c in unknown}
        for coordinate, value in values.items():
            self._values[coordinate] = float(torch.tensor(value, dtype=torch.float64).to(self.blocks.dtype))
        return {coordinate: self._values[coordinate] for coordinate in edited}

    def _as_loaded(self, projection: DownProjection) -> torch.Tensor:
        """Return a down projection as the model gets it, [rows, cols]; reads all of the tensor that stores it."""
        matrix = projection.matrix
        stored = self.blocks.read([projection.name])[projection.name]
        part = stored.reshape(-1, *matrix.data.shape)[matrix.data.start // matrix.stored_bytes]  # one expert's
        return part.T if matrix.transposed else part


def _listed(layers: Iterable[int]) -> str:
    first, *others = sorted(layers)
    more = f" and {len(others) - 7} more" if len(others) > 7 else ""
    return ", ".join(map(str, [first, *others[:7]])) + more
