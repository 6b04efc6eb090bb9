"""Sees, and changes, what blocks and their down projections do while a model runs: hooks, a look into experts.

An edit never touches a weight. Multiplying W[row, col] by a factor is the same as subtracting
(1 - factor) * W[row, col] * input[..., col] from output[..., row] of that down projection, so each row of a batch can
carry its own edits and one pass over the model answers for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.hooks import RemovableHandle

from analyzer.base.errors import ForwardError
from analyzer.base.records import Coordinate, Place
from analyzer.forward.blocks.experts import watched_experts
from analyzer.forward.blocks.mlps import Block, Passage, Record
from analyzer.forward.blocks.units import Product, units_of
from analyzer.forward.edits import InputEdit, Intervention, PlacedEdit, StreamEdit, UnitEdit, WeightEdit
from analyzer.forward.linears import changed_inputs, changing, linears_of
from analyzer.forward.trace import Entry, factors_of
from analyzer.model.rows import is_stacked, tokens_come_first


@contextmanager
def intercepted(
    blocks: Sequence[Block],
    interventions: Sequence[Intervention],
    values: Mapping[Coordinate, float],
    rows: Callable[[], list[int]],
    tokens: int,
    record: Record | None = None,
) -> Iterator[None]:
    """While the context lasts, run row i of a batch with the edits of interventions[i], and record passages.

    `values` are those of the weights that edits need. `rows` tells which rows of the batch the running block has in
    hand, each of so many tokens; what is recorded is what the model goes on with. Raises ForwardError where an edit is
    of a kind that is not done here.
    """
    edited: dict[Place, list[tuple[int, WeightEdit | PlacedEdit]]] = {}
    units = units_of(interventions)
    streams: dict[int, list[tuple[int, StreamEdit]]] = {}
    for batch_row, intervention in enumerate(interventions):
        for edit in intervention.edits:
            if isinstance(edit, StreamEdit):
                streams.setdefault(edit.layer, []).append((batch_row, edit))
            elif isinstance(edit, WeightEdit | PlacedEdit):
                edited.setdefault(edit.coordinate.place, []).append((batch_row, edit))
            elif not isinstance(edit, InputEdit | UnitEdit):
                raise ForwardError(f"{type(edit).__name__} is a kind of edit that this version cannot do")

    def change(
        place: Place,
        which: torch.Tensor,
        entered: torch.Tensor,
        left: torch.Tensor,
        product: Product,
        *,
        padded: bool = False,
    ) -> torch.Tensor:
        """Return the output [n, hidden_size] of the tokens at the places `which` [n] with the edits in place.

        `product` is what makes it of `entered`. Where these are all tokens of a block, each row may be `padded` to a
        window.
        """
        here, whole = edited.get(place, ()), units.get(place, {})
        if not here and not whole:
            return left
        left = left.clone()
        in_hand = torch.tensor(rows(), device=which.device)
        width = len(which) // len(in_hand) if padded else tokens
        batch_rows, positions = in_hand[which // width], which % width
        for batch_row, edits in whole.items():
            if (mine := batch_rows == batch_row).any():
                left[mine] = product.with_units(edits, entered[mine], left[mine])
        for batch_row, edit in here:
            mine, c = batch_rows == batch_row, edit.coordinate
            removed = values[c] * _removed(edit, positions[mine])
            exact = left[mine, c.row].float() - removed * entered[mine, c.col].float()
            left[mine, c.row] = exact.to(left.dtype)
        return left

    if unknown := streams.keys() - {layer for block in blocks for layer in block.layers}:
        raise ForwardError(f"there is no block {min(unknown)} whose stream could be changed")
    with ExitStack() as stack:
        for block in blocks:
            if on_input := changing(block, interventions):
                stack.enter_context(changed_inputs(linears_of(block), on_input, rows, tokens))
            if streams.keys() & set(block.layers):
                hook = _stream_hook(iter(block.layers), streams, len(interventions))
                # Before all others: what observes a block sees what the model goes on with.
                stack.callback(block.module.register_forward_hook(hook, prepend=True).remove)
        writers = [(writer, each.is_latent) for each in blocks for mlp in each.mlps for writer in mlp.writers]
        for writer, is_latent in writers:
            keep = asked = None if is_latent else record
            if asked is None and not any(place in edited or place in units for place in writer.places):
                continue
            if writer.downs:
                stack.enter_context(watched_experts(writer, change, asked))
                continue
            if writer.gate is not None and asked is not None:
                waiting: list[Passage] = []
                keep = waiting.append
                stack.callback(writer.gate.register_forward_hook(_gate_hook(waiting, asked)).remove)
            hook = _linear_hook(writer.places[0], change, keep)
            stack.callback(writer.module.register_forward_hook(hook).remove)
        yield


def _removed(edit: WeightEdit | PlacedEdit, positions: torch.Tensor) -> torch.Tensor | float:
    """Return the part of a weight that an edit takes away, at each of the positions [n] or at all alike."""
    if isinstance(edit, WeightEdit):
        return 1.0 - float(edit.factor)
    at = torch.isin(positions, torch.tensor(sorted(edit.positions), device=positions.device))
    return torch.where(at, 1.0 - float(edit.at), 1.0 - float(edit.elsewhere))


def _linear_hook(place: Place, change: Callable[..., torch.Tensor], record: Record | None) -> Callable[..., Any]:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        # [rows, T, channels]; some models flatten the first two, or give a scale beside it.
        given = _first(output)
        entered, left = args[0].reshape(-1, args[0].shape[-1]), given.reshape(-1, given.shape[-1])
        which = torch.arange(left.shape[0], device=left.device)
        left = change(place, which, entered, left, Product(lambda taken: _first(module.forward(taken))), padded=True)
        if record is not None:
            record(Passage(place, which, entered, left, torch.ones(left.shape[0], device=left.device)))
        left = left.reshape(given.shape)
        return left if output is given else (left, *output[1:])

    return hook


def _stream_hook(
    layers: Iterator[int], streams: Mapping[int, Sequence[tuple[int, StreamEdit]]], rows: int
) -> Callable[..., Any]:
    """Return the hook of a block, which has all rows of the batch and is these layers in turn."""

    def hook(_module: object, _args: object, output: Any) -> Any:
        here = streams.get(next(layers), ())
        if not here:
            return output
        given = _first(output)
        if given.ndim != 3 or given.shape[0] != rows:
            raise ForwardError(f"a block gives a stream of {list(given.shape)}, which is not changed yet")
        places = [(row, *value) for row, edit in here for value in edit.values]
        batch_rows, positions, channels, values = zip(*places, strict=True)
        changed = given.clone()
        changed[list(batch_rows), list(positions), list(channels)] = torch.tensor(values).to(given)
        return changed if output is given else (changed, *output[1:])

    return hook


def _gate_hook(waiting: list[Passage], record: Record) -> Callable[..., None]:
    def hook(_module: object, _args: object, output: torch.Tensor) -> None:
        while waiting:  # the gate runs after the shared expert
            record(replace(waiting.pop(), routed=torch.sigmoid(output.float()).reshape(-1)))

    return hook


class OtherWidthError(ForwardError):
    """The first block takes a stream of another width than what MLPs write."""

    def __init__(self, width: int, words: str) -> None:
        super().__init__(words)
        self.width = width


class EnoughError(Exception):
    """Ends a pass over the model before its last block."""


class Watched:
    """What the hooks of one pass have seen, of so many rows of so many tokens; of the MLPs, those of the first row."""

    def __init__(self, rows: int, tokens: int, width: int, *, several: bool) -> None:
        """`width` is how many channels MLPs write, and the stream has, or each stream where there may be `several`."""
        self.entering: dict[int, NDArray[np.float32]] = {}
        """What the first row has before the first layer, and before those that take something else than was given."""
        self.streams: dict[int, NDArray[np.float32]] = {}
        self.entries: dict[int, list[Entry]] = {}
        self.outputs: dict[int, list[NDArray[np.float32]]] = {}
        """What each MLP of a layer gives, nothing where it does not run."""
        self.added: dict[int, list[NDArray[np.float32]]] = {}
        """What becomes of it in a norm that follows it, each of several apart."""
        self._rows, self._tokens, self._width, self._several = rows, tokens, width, several
        self._layer = -1  # of the block that runs
        self._taken: torch.Tensor | None = None  # by the block that runs, or ran last
        self._left: torch.Tensor | None = None  # the stream after the block before
        self._added: tuple[torch.Tensor, torch.Tensor] | None = None  # what an only MLP gave, and its first token's
        self._parts: dict[
            Place, tuple[int, int | None]
        ] = {}  # the MLP's number in its block, the writer's in a mixture
        self._given: dict[int, torch.Tensor] = {}  # by the running block's MLPs
        self._normed: list[tuple[torch.Tensor, torch.Tensor]] = []  # what modules inside of mixtures took, and gave
        self._products: dict[tuple[int, int, int], NDArray[np.float32]] = {}  # by layer, MLP and writer

    def hung_up(self, block: Block, ends: Callable[[int], bool], *, inside: bool) -> Iterator[RemovableHandle]:
        """Hang up the hooks of a block, those of its MLPs only where one wants to see `inside`."""
        layers, inside = iter(block.layers), inside and not block.is_latent

        def before(_module: object, args: Any, kwargs: Any) -> None:
            self._layer = next(layers, -1)
            if self._layer < 0:
                raise ForwardError(
                    f"block {block.layers[-1]} runs again and again, which is not followed yet: it can be scanned, but "
                    "not verified"
                )
            self.outputs[self._layer] = [np.zeros((self._tokens, self._width), np.float32)] * len(block.mlps)
            self.added[self._layer] = list(self.outputs[self._layer])
            self._given.clear()
            self._normed.clear()
            taken, before = args[0] if args else kwargs["hidden_states"], self._taken
            if self._left is None or not (taken is self._left or torch.equal(taken, self._left)):
                self.entering[self._layer] = self._by_rows(taken, "takes")[0].copy()
                if before is not None and (self._layer < max(self.streams) or torch.equal(taken, before)):
                    raise ForwardError(
                        f"block {self._layer} runs beside another block, or before, not after it, which is not "
                        "followed yet: it can be scanned, but not verified"
                    )
            self._taken, self._added = taken, None

        def added(_module: object, _args: object, output: Any) -> None:
            self._added = _first(output), _first(output).flatten()[: self._width].clone()

        def after(_module: object, _args: object, output: Any) -> None:
            self._left = self._stream_of(_first(output))
            self.streams[self._layer] = self._by_rows(self._left, "gives")
            if ends(self._layer):
                raise EnoughError

        yield block.module.register_forward_pre_hook(before, with_kwargs=True)
        for number, mlp in enumerate(block.mlps if inside else ()):
            for index, writer in enumerate(mlp.writers):
                self._parts |= dict.fromkeys(writer.places, (number, index if mlp.is_mixture else None))
            for norm in _norms(mlp.whole):
                yield norm.register_forward_hook(self._on_inner)
            yield mlp.whole.register_forward_hook(self._on_mlp(number))
        for norm in _norms(block.module) if inside else ():
            yield norm.register_forward_hook(self._on_norm)
        if len(block.mlps) == 1:
            yield block.mlps[0].whole.register_forward_hook(added)
        yield block.module.register_forward_hook(after)

    def _stream_of(self, given: torch.Tensor) -> torch.Tensor:
        """Return the stream after a block that gave this: with what it took where that is left to the model (XLM).

        It gave no more than its only MLP did then.
        """
        if self._added is None or self._taken is None or self._taken.shape != given.shape:
            return given
        whole, first = self._added
        same = whole.data_ptr() == given.data_ptr() and whole.numel() == given.numel()
        alone = same and torch.equal(given.flatten()[: self._width], first)  # nothing was added in place
        return self._taken + given if alone else given

    def on_passage(self, passage: Passage) -> None:
        """Keep what went through a down projection."""
        place, tokens = passage.place, passage.tokens.cpu().numpy()
        part, writer = self._parts[place]
        entry = Entry(place, tokens, numpy_of(passage.entered), numpy_of(passage.routed), part)
        self.entries.setdefault(self._layer, []).append(entry)
        if writer is None:
            return
        product = np.zeros((self._tokens, self._width), np.float32)
        here = tokens < self._tokens
        np.add.at(product, tokens[here], (numpy_of(passage.left) * entry.routed[:, None])[here])
        key = self._layer, part, writer
        self._products[key] = self._products.get(key, 0) + product

    def before(self, layers: Sequence[int]) -> NDArray[np.float32]:
        """Return what each of these layers, in the order of the run, takes of the first row, [layers, T, channels]."""
        pairs = zip([layers[0], *layers], layers, strict=False)
        return np.stack([self.entering[n] if n in self.entering else self.streams[last][0] for last, n in pairs])

    def weighed(self, layer: int) -> tuple[Entry, ...]:
        """Return the entries of a layer, the router's weights times what its mixture multiplies its experts by."""
        factors: dict[tuple[int, int | None], float] = {}
        for part, output in enumerate(self.outputs[layer]):
            writers = sorted(key[2] for key in self._products if key[:2] == (layer, part))
            if not writers:
                continue
            found = factors_of(output, [self._products[layer, part, writer] for writer in writers])
            factors |= {(part, writer): factor for writer, factor in zip(writers, found, strict=True)}
        of_entry = [factors.get(self._parts[entry.place], 1.0) for entry in self.entries[layer]]
        return tuple(
            replace(entry, routed=entry.routed * np.float32(factor))
            for entry, factor in zip(self.entries[layer], of_entry, strict=True)
        )

    def _on_mlp(self, number: int) -> Callable[..., None]:
        """Return the hook of an MLP, which keeps what it adds. Raises ForwardError where that is not of each token."""

        def hook(_module: object, _args: object, output: Any) -> None:
            left = _first(output)
            for taken, given in self._normed:  # the norm that a mixture ends with scales all terms alike
                left = taken if given.data_ptr() == left.data_ptr() else left
            left = left.reshape(-1, self._width)
            if left.shape[0] != self._rows * self._tokens and self._rows == 1:
                left = left[: self._tokens]  # what is padded to a window
            if left.shape[0] != self._rows * self._tokens:
                raise ForwardError(f"an MLP gives {list(left.shape)}, which is not followed yet: verify another model")
            self._given[number] = _first(output)
            self.outputs[self._layer][number] = self.added[self._layer][number] = numpy_of(left)

        return hook

    def _on_inner(self, _module: object, args: Any, output: Any) -> None:
        if args and isinstance(output, torch.Tensor) and getattr(args[0], "shape", None) == output.shape:
            self._normed.append((args[0], output))

    def _on_norm(self, _module: object, args: Any, output: Any) -> None:
        """Keep what a norm makes of what an MLP gave: it has nothing else to work on."""
        for number, given in self._given.items():
            same = args and isinstance(args[0], torch.Tensor) and args[0].data_ptr() == given.data_ptr()
            if same and isinstance(output, torch.Tensor) and output.shape == args[0].shape:
                self.added[self._layer][number] = numpy_of(output).reshape(-1, self._width)[: self._tokens]

    def _by_rows(self, hidden: torch.Tensor, what: str) -> NDArray[np.float32]:
        if hidden.ndim == 2 and self._rows == 1:
            hidden = hidden[None]
        if is_stacked(hidden, self._rows, self._tokens):
            hidden = hidden.permute(1, 2, 0, 3)
        if tokens_come_first(hidden, self._rows):
            hidden = hidden.transpose(0, 1)
        whole = hidden.flatten(2) if hidden.ndim == 4 and hidden.shape[3] == self._width else hidden
        words = (
            f"a block {what} a residual stream of {list(hidden.shape)} for {self._rows} x {self._tokens} tokens, "
            f"where others have {self._width} channels, which is not followed yet: it can be scanned, but not verified"
        )
        if whole.ndim != 3 or whole.shape[0] != self._rows or whole.shape[1] < self._tokens:
            raise ForwardError(words)
        if whole.shape[2] % self._width or (whole.shape[2] != self._width and not self._several):
            raise (
                OtherWidthError(whole.shape[2], words) if what == "takes" and not self.streams else ForwardError(words)
            )
        return numpy_of(whole[:, : self._tokens])  # some pad their inputs to a window


def _norms(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Return what stands right in a module and multiplies by no matrix."""
    return [child for child in module.children() if all(p.ndim < 2 for p in child.parameters())]


def _first(output: Any) -> torch.Tensor:
    """Return the hidden states that a module gives, alone or before other things."""
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def numpy_of(tensor: torch.Tensor) -> NDArray[np.float32]:
    """Return a copy: models go on to change their activations in place (Falcon adds attention to what its MLP adds)."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()
