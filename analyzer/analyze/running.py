"""A model's name to a model that runs: its checkpoint, its weights on this machine, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.base.config import (
    DECODER_LAYERS_KEYS,
    NUM_LAYERS_KEYS,
    is_gguf,
    language_part,
    model_types,
    not_a_number_in,
    size_in,
    sizes_in,
    ternary_when_run,
)
from analyzer.base.errors import ArchitectureError, ForwardError, shown
from analyzer.base.settings import check_device, check_dtype
from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.model.layouts.gguf_config import stock_config
from analyzer.model.layouts.mlx import stock_modules
from analyzer.projections.architectures import CONV1D_MODEL_TYPES
from analyzer.projections.down_projections import find_projections
from analyzer.projections.projection import MAIN_TOWERS, DownProjection
from analyzer.source.folder import FolderSource
from analyzer.source.single_file import FileSource
from analyzer.source.source import Source

if TYPE_CHECKING:  # they import torch, which a scan, and a refusal, never need
    from analyzer.forward.editing import EditableModel
    from analyzer.forward.runner import Runner
    from analyzer.model.tokens import Tokens
    from analyzer.model.weights import ChangeTensor

MOST_LAYERS = 2000
NOT_OF_TEXT = ("vision", "audio")
SKIPPED = ("mtp",)  # towers that predict further tokens, and do not run where one token is asked for
Parts = tuple[list[DownProjection], list[DownProjection], list[DownProjection], bool]
"""See Runnable: projections, before, others, encoder_alone."""


@dataclass(frozen=True)
class Runnable:
    """A checkpoint that can be run, its down projections, and the folder of its config and tokenizer."""

    checkpoint: Checkpoint
    projections: Sequence[DownProjection]
    """Those of the tower that is judged."""
    before: Sequence[DownProjection]
    """Those of the towers that run before it: an encoder's, before its decoder."""
    others: Sequence[DownProjection]
    """Those of towers that do not run."""
    encoder_alone: bool
    """The tower is the encoder of an encoder-decoder, and runs without its decoder."""
    folder: Path

    def build(
        self,
        *,
        device: str = "auto",
        dtype: str = "auto",
        keep_bytes: int | None = None,
        change: ChangeTensor | None = None,
    ) -> tuple[Runner, Tokens]:
        """Return the stock model, ready to run, and its tokenizer.

        `change` is asked for what to load in place of each tensor of a block. Raises ForwardError where the model
        cannot be built.
        """
        from analyzer.forward.runner import Runner
        from analyzer.model.tokens import Tokens

        runner = Runner(
            self.checkpoint,
            self.projections,
            self.folder,
            device=device,
            dtype=dtype,
            keep_bytes=keep_bytes,
            change=change,
            before=self.before,
            others=self.others,
            encoder_alone=self.encoder_alone,
        )
        tokens = Tokens(
            runner.name,
            self.folder,
            vocabulary=runner.vocabulary,
            max_tokens=runner.max_tokens,
            masked=runner.masked,
            gguf=self.checkpoint.shards[0] if is_gguf(self.checkpoint.config) else None,
            start=runner.start,
        )
        return runner, tokens


def open_runnable(source: Source, *, tower: str | None = None, download: bool = True) -> Runnable:
    """Return a model's checkpoint where it can be run, its weights on this machine.

    `tower` is the one to judge, null for the one that makes text. A model on the Hub is downloaded, since its weights
    are needed many times over; without `download` they are read by ranges, but for a GGUF file. Raises AnalyzerError
    where it cannot be read, or be run.
    """
    checkpoint = Checkpoint(source)
    # Fails, where it must, before gigabytes are read or a lying config is built.
    parts = _parts_of(checkpoint, tower)
    download = download or is_gguf(checkpoint.config)  # a GGUF file has its tokenizer in it
    folder = source.folder(checkpoint.shards if download else ())
    if download and not isinstance(source.whole if isinstance(source, FileSource) else source, FolderSource):
        here: Source = FolderSource(folder, model_id=source.model, revision=source.revision, commit=source.commit)
        checkpoint = Checkpoint(
            FileSource(here, checkpoint.shards[0], model=source.model) if is_gguf(checkpoint.config) else here
        )
        parts = _parts_of(checkpoint, tower)
    return Runnable(checkpoint, *parts, folder)


def load_model(source: Source, *, device: str = "auto", dtype: str = "auto") -> EditableModel:
    """Return a model for experiments of one's own, in which a block of code runs with weights edited.

    `source` is what open_model returns; a model on the Hub is downloaded. `device` is auto, cpu, cuda, cuda:N or mps;
    `dtype` auto (float32 on a CPU, else the checkpoint's own), float32, bfloat16 or float16. Raises AnalyzerError where
    the model cannot be read or run.

    >>> model = load_model(open_model("./my-model"))
    >>> with model.edited({Coordinate(1, None, 77, 31): 0.0}):
    ...     zeroed = model.loss(TEXT)
    >>> zeroed != model.loss(TEXT)
    True
    """
    from analyzer.forward.editing import EditableModel

    check_device(device)  # before anything is downloaded
    check_dtype(dtype)
    return EditableModel(*open_runnable(source).build(device=device, dtype=dtype))


def _parts_of(checkpoint: Checkpoint, wanted: str | None) -> Parts:
    """Return which down projections are judged, and which run without that: see Runnable, and SKIPPED.

    Raises ArchitectureError for what the forward pass cannot follow yet, where a part of the tower is not read, and
    where config.json has another number of blocks than the weights: the model that it describes is not the one that
    was scanned.
    """
    model, config = checkpoint.source.model, checkpoint.config
    if is_gguf(config):
        stock_config(model, checkpoint.metadata, checkpoint.shapes, None)  # or it is refused
    found = find_projections(checkpoint)
    towers = list(dict.fromkeys(each.tower for each in found.projections))
    main, encoders = _towers_of_text(checkpoint, [each for each in found.projections if each.tower not in SKIPPED])
    tower = main if wanted is None else _named(model, wanted, towers, (main, *encoders))
    encoder_alone = tower in encoders
    projections = [each for each in found.projections if each.tower == tower]
    before = [each for each in found.projections if each.tower in encoders and not encoder_alone]
    others = [each for each in found.projections if each.tower not in (tower, *SKIPPED) and each not in before]
    stack = projections[0].stack
    unread = [each for each in found.unread if not others or each.names.startswith(f"{stack}.")]
    if unread:
        first = unread[0]
        raise ArchitectureError(
            f"{model} has parts that are not read: {shown(first.names, 80)} x {first.count} ({first.why}); what its "
            "verification would say is not the whole of it"
        )
    _check_followed(checkpoint, projections)
    ahead = {each.block for each in found.projections if each.tower == "mtp"}
    blocks = {layer for each in projections for layer in each.layers or ()} | {
        int(number)
        for name in checkpoint.tensors
        if name.startswith(f"{stack}.")
        and (number := name[len(stack) + 1 :].partition(".")[0]).isdigit()
        and f"{stack}.{number}" not in ahead
    }
    # The counts of encoders and decoders go by many names; the stock model is held against the weights anyway.
    counted = None if "decoder" in towers or encoders else size_in(language_part(config), NUM_LAYERS_KEYS)
    claimed = counted or len(blocks)
    if claimed != len(blocks) and not is_gguf(config):
        from analyzer.model.stock import blocks_told

        with suppress(ForwardError):  # what config.json itself says is in its own words
            claimed = blocks_told(model, checkpoint.source.folder(())) or claimed
    if claimed != len(blocks):
        raise ArchitectureError(
            f"{model} has {len(blocks)} blocks, but config.json says it has {claimed}: use the config.json of these "
            "weights"
        )
    return projections, before, others, encoder_alone


def _towers_of_text(
    checkpoint: Checkpoint, projections: Sequence[DownProjection]
) -> tuple[str | None, Sequence[str | None]]:
    """Return the tower that makes text, and the encoders that run before it.

    It is told by its name where it alone has such a name, else as the stock class has it.
    """
    model, source = checkpoint.source.model, checkpoint.source
    towers = list(dict.fromkeys(each.tower for each in projections))
    if len(towers) == 1:
        return towers[0], ()
    named = [tower for tower in MAIN_TOWERS if tower in towers]
    if len(named) == 1:
        return named[0], [each for each in towers if each != named[0]] if named[0] == "decoder" else ()
    from analyzer.model.towers import towers_in_parts

    _check_config(model, checkpoint.config)
    first = {
        str(each.tower): each.name if each.quantization is None else f"{each.module}.weight"
        for each in reversed(projections)
    }
    inside, encoders = towers_in_parts(model, source.folder(()), first, checkpoint.tensors)
    found = [tower for tower in inside if tower not in NOT_OF_TEXT]
    if len(found) == 1:
        return found[0], encoders
    told = "text goes through several of them" if found else "none is known to make text"
    raise ArchitectureError(
        f"{model} has several towers ({_listed(towers)}), and {told}: it can be scanned, but not yet verified"
    )


def _check_config(model: str, config: Mapping[str, Any]) -> None:
    """Raise ArchitectureError for a config of which no model should be built."""
    if (most := max(sizes_in(config, (*NUM_LAYERS_KEYS, *DECODER_LAYERS_KEYS)), default=0)) > MOST_LAYERS:
        raise ArchitectureError(f"{model}: config.json speaks of {most:,} blocks, too many to be true: correct it")
    if nan := not_a_number_in(config):
        raise ArchitectureError(f"{model} cannot be run: its config.json says that {shown(nan, 80)} is NaN: correct it")


def _named(model: str, wanted: str, towers: Sequence[str | None], driven: Sequence[str | None]) -> str:
    """Return the tower of this name. Raises ArchitectureError where there is none, or text does not drive it."""
    named = [each for each in driven if each is not None]
    if wanted in named:
        return wanted
    if not named:
        raise ArchitectureError(f"{model} has one tower: leave --tower out")
    if wanted in towers:
        raise ArchitectureError(f"text does not drive the tower {shown(wanted)} of {model}: use {_listed(named)}")
    raise ArchitectureError(f"{model} has no tower {shown(wanted)}: it has {_listed(towers)}")


def _listed(towers: Sequence[str | None]) -> str:
    return ", ".join(shown(each) for each in sorted(str(each or "main") for each in towers))


def _check_followed(checkpoint: Checkpoint, projections: Sequence[DownProjection]) -> None:
    """Raise ArchitectureError for what the forward pass cannot follow yet."""
    model, config = checkpoint.source.model, checkpoint.config
    encoded = next((each.quantization for each in projections if each.quantization), None)
    if encoded is not None and model_types(config) & CONV1D_MODEL_TYPES:
        raise ArchitectureError(
            f"{model} is quantized ({encoded}), and its library has matrices the other way round than others: it can "
            "be scanned, but not yet verified"
        )
    for each in projections:
        if each.matrix.data.dtype == "U32":  # MLX's
            stock_modules(model, checkpoint.model_type, each.module, None if each.expert is None else 1)
    if ternary_when_run(config):
        raise ArchitectureError(
            f"{model} is made ternary each time it runs (bitnet), which is not done here: it can be scanned, but not "
            "yet verified"
        )
    _check_config(model, config)
