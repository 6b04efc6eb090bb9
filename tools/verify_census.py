"""What `verify` makes of a tiny model with a planted weight, against what the library's own model says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tiny_models import Kind, build, one_line
from tiny_text import PROMPT, PROMPT_IDS, TEXT, TEXT_IDS, save_tokenizer

if TYPE_CHECKING:
    from stock_runs import Stream
    from super_planting import Candidate
    from transformers import PreTrainedModel

STREAM_TOLERANCE = 1e-4  # of an entry, and of its layer's median
LOSS_TOLERANCE = 1e-5
NOT_ON_TEXT = "not on text"

Fields = dict[str, Any]


def save_with_super_weight(kind: Kind, matrices: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write a model in which one weight makes a super activation, if one can, and what the library says of it.

    `matrices` are its true down projections.
    """
    from stock_runs import is_causal, run_text
    from super_planting import plant_super_weight

    model = build(kind)
    model.set_attn_implementation("eager")  # PaliGemma is causal with it, and with others not
    stock: Fields = {}
    planted, masked, stack = None, False, None
    try:
        ran = run_text(model, PROMPT_IDS, {each["stack"] for each in matrices}).order
    except Exception as error:  # whatever a model raises where it needs more than text
        ran, stock["unrunnable"] = [], one_line(error)
    if ran:  # else it has no stack of blocks with MLPs of matrices
        stack = ran[-1]  # the one that makes text
        masked = "MaskedLM" in kind.class_name or not (model.config.is_encoder_decoder or is_causal(model))
        planted = plant_super_weight(model, [each for each in matrices if each["stack"] == stack])
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    if stack is not None:  # some do not save all that they have, such as Marian its positions
        loaded = type(model).from_pretrained(folder / "model", attn_implementation="eager").eval().requires_grad_(False)
        stock |= _told(loaded, stack, planted, masked=masked)
    if "value" in stock:
        stock["matrix"] = _matrix_with(stock, matrices, folder / "model")
    if "stream" in stock:
        np.save(folder / "stream.npy", stock.pop("stream"))
    (folder / "stock.json").write_text(json.dumps(stock))


def _told(model: PreTrainedModel, stack: str, planted: Candidate | None, *, masked: bool) -> Fields:
    """Return the stream and the losses of the library's model, and whether the planted weight writes what it should."""
    from stock_runs import run_text, super_activations, text_loss, zeroed
    from super_planting import writes_super_activation

    def run() -> tuple[Stream, float | None]:
        stream = run_text(model, PROMPT_IDS, [stack]).stream(stack)
        return stream, text_loss(model, TEXT_IDS, masked=masked)

    stream, loss = run()
    told: Fields = {"stream": stream, "loss": loss, "quiet": not super_activations(stream)}
    if planted is not None:
        parameter = model.get_parameter(planted.place.parameter)
        told |= {"row": planted.row, "col": planted.col, "value": float(parameter.view(-1)[planted.index])}
        told["writes"] = writes_super_activation(model, planted)
        with zeroed(parameter, planted.index):
            _, told["loss_zeroed"] = run()
    return told


def _matrix_with(stock: Fields, matrices: Sequence[Mapping[str, Any]], folder: Path) -> int | None:
    """Return which matrix has the planted weight in the checkpoint, null where none has."""
    from planting import read_tensors

    tensors = read_tensors(folder)
    row, col = stock["row"], stock["col"]
    for number, matrix in enumerate(matrices):
        rows, cols = matrix["rows"], matrix["cols"]
        at = (matrix["number"] or 0) * rows * cols + (col * rows + row if matrix["turned"] else row * cols + col)
        flat = tensors[matrix["name"]].ravel() if matrix["name"] else np.empty(0)
        if at < flat.size and flat[at] == np.float32(stock["value"]):
            return number
    return None


def compare_verified(matrices: Sequence[Mapping[str, Any]], folder: Path) -> tuple[str, str]:
    """Verify the model in a folder; return the verdict, and the reason.

    That is right, wrong, refused, or "not on text" where the library's own model refuses text alone too. `matrices` are
    its true down projections.
    """
    from analyzer.base.errors import AnalyzerError

    stock = json.loads((folder / "stock.json").read_text())
    try:
        wrong = "; ".join(_faults(matrices, stock, folder))
    except AnalyzerError as error:
        reason = str(error).replace(str(folder / "model"), "MODEL")
        if "unrunnable" not in stock:
            return "refused", reason
        return NOT_ON_TEXT, f"{reason}; the library's own model on text alone: {stock['unrunnable']}"
    except Exception as error:
        return "wrong", one_line(error)
    return ("wrong", wrong) if wrong else ("right", "" if stock.get("writes") else "none planted")


def _faults(matrices: Sequence[Mapping[str, Any]], stock: Fields, folder: Path) -> Iterator[str]:
    """Yield in what a verification differs from what the library says of a model. Raises whatever verifying does."""
    from analyzer.analyze.running import open_runnable
    from analyzer.analyze.verifying import verify_model
    from analyzer.base.records import Coordinate
    from analyzer.forward.edits import UNTOUCHED, zeroing
    from analyzer.forward.losses.plain import losses
    from analyzer.source.opening import open_model
    from analyzer.verify.settings import VerifySettings

    source = open_model(str(folder / "model"))
    result = verify_model(source, VerifySettings(PROMPT, TEXT, prompts=()))
    if "unrunnable" in stock:
        yield f"runs, though the library's own model does not: {stock['unrunnable']}"
        return
    runnable = open_runnable(source)
    runner, tokens = runnable.build()
    (stream,) = runner.streams([PROMPT_IDS], [UNTOUCHED])
    yield from _stream_faults(stream, np.load(folder / "stream.npy"))
    places = {(each.name, each.expert): each for each in runnable.projections}
    matrix = None if stock.get("matrix") is None else matrices[stock["matrix"]]
    place = None if matrix is None else places.get((matrix["name"], matrix["expert"]))
    windows = tokens.windows(TEXT)
    if place is None:
        if matrix is not None:
            yield f"does not judge {matrix['name']}"
        yield from _loss_faults("loss", losses(runner, windows, [UNTOUCHED])[0], stock["loss"])
        return
    planted = Coordinate(place.layer, place.expert, stock["row"], stock["col"], place.tower, place.mlp)
    found = losses(runner, windows, [UNTOUCHED, zeroing([planted])])
    for name, each in zip(("loss", "loss_zeroed"), found, strict=True):
        yield from _loss_faults(name, each, stock[name])
    status = next((each.status for each in result.super_weights if each.coordinate == planted), "not found")
    if stock["writes"] and (status, result.verdict) != ("confirmed", "found"):
        yield f"{planted} is {status}, the verdict {result.verdict}"
    if stock["quiet"] and any(each.status == "confirmed" for each in result.super_weights):
        yield "confirms a super weight where the library's model has no super activation"


def _stream_faults(found: Stream, expected: Stream) -> Iterator[str]:
    if found.shape != expected.shape:
        yield f"gives a stream of {list(found.shape)}, not {list(expected.shape)}"
        return
    medians = np.median(np.abs(expected), axis=(1, 2), keepdims=True)
    parts = np.abs(found - expected) / (np.abs(expected) + medians)
    worst = parts.max(axis=(1, 2))  # [blocks]
    if worst.max() > STREAM_TOLERANCE:
        yield f"its stream differs by {worst.max():.1g}, first after block {int(np.argmax(worst > STREAM_TOLERANCE))}"


def _loss_faults(name: str, found: float, expected: float | None) -> Iterator[str]:
    if expected is not None and not abs(found - expected) <= LOSS_TOLERANCE * abs(expected):
        yield f"its {name} is {found:.6f}, not {expected:.6f}"
