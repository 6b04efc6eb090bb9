"""A model's name to a model that runs: its checkpoint, its weights on this machine, its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analyzer.checkpoint.checkpoint import Checkpoint
from analyzer.checkpoint.down_projections import DownProjection, check_can_be_run, down_projections
from analyzer.source.folder import FolderSource
from analyzer.source.source import Source

if TYPE_CHECKING:  # they import torch, which a scan, and a refusal, never need
    from analyzer.forward.editing import EditableModel
    from analyzer.forward.runner import Runner
    from analyzer.model.tokens import Tokens


@dataclass(frozen=True)
class Runnable:
    """A checkpoint that can be run, its down projections, and the folder of its config and tokenizer."""

    checkpoint: Checkpoint
    projections: Sequence[DownProjection]
    folder: Path

    def build(
        self, *, device: str = "auto", dtype: str = "auto", keep_bytes: int | None = None
    ) -> tuple[Runner, Tokens]:
        """Return the stock model, ready to run, and its tokenizer. Raises ForwardError where it cannot be built."""
        from analyzer.forward.runner import Runner
        from analyzer.model.tokens import Tokens

        runner = Runner(
            self.checkpoint, self.projections, self.folder, device=device, dtype=dtype, keep_bytes=keep_bytes
        )
        tokens = Tokens(
            runner.name,
            self.folder,
            vocabulary=runner.vocabulary,
            max_tokens=runner.max_tokens,
            masked=runner.masked,
        )
        return runner, tokens


def open_runnable(source: Source, *, download: bool = True) -> Runnable:
    """Return a model's checkpoint where it can be run, its weights on this machine.

    A model on the Hub is downloaded, since its weights are needed many times over; without `download` they are read by
    ranges. Raises AnalyzerError where it cannot be read, or be run.
    """
    checkpoint = Checkpoint(source)
    projections = down_projections(checkpoint)
    # Fails, where it must, before gigabytes are read or a lying config is built.
    check_can_be_run(source.model, projections, checkpoint.config)
    folder = source.folder(checkpoint.shards if download else ())
    if download:
        checkpoint = Checkpoint(
            FolderSource(folder, model_id=source.model, revision=source.revision, commit=source.commit)
        )
        projections = down_projections(checkpoint)
    return Runnable(checkpoint, projections, folder)


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

    return EditableModel(*open_runnable(source).build(device=device, dtype=dtype))
