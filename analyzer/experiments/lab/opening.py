"""The lab: a model ready to run, the weights in question, the windows; and the losses of arms in it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from analyzer.analyze.running import Runnable, open_runnable
from analyzer.analyze.verifying import values_in
from analyzer.base.errors import ForwardError
from analyzer.base.progress import Progress, counted
from analyzer.experiments.data.contexts import Passages, contexts_of, read_passages
from analyzer.experiments.data.texts import Text, read_text, windows_of
from analyzer.experiments.lab.asked import MOST_WEIGHTS, Settings, weights_asked
from analyzer.experiments.lab.costs import cost_of
from analyzer.experiments.lab.records import Arm, Experiment, Measured, Weight
from analyzer.forward.checking import check_rows, run_like
from analyzer.forward.edits import UNTOUCHED, Intervention
from analyzer.forward.linears import InputStatistics
from analyzer.forward.losses.plain import token_losses
from analyzer.forward.runner import Runner
from analyzer.model.tokens import Tokens, Window
from analyzer.model.weights import ChangeTensor
from analyzer.source.source import Source
from analyzer.verify.settings import PAPER_PROMPT

CHECKED = 64  # tokens of the first text
ORIGINAL = Arm("original")
Losses = NDArray[np.float64]
"""Of each arm over each window, the mean in nats per token, [arms, windows]."""


@dataclass(frozen=True)
class Known:
    """What was measured of a model already, which no experiment measures again."""

    losses: WeakKeyDictionary[Runner, dict[tuple[Window, Intervention], float]] = field(
        default_factory=WeakKeyDictionary
    )
    """Of each runner, the mean loss of a window under an intervention."""
    inputs: dict[tuple[Window, ...], InputStatistics] = field(default_factory=dict)
    """What linear maps of the untouched model saw of windows to calibrate on."""
    checked: set[tuple[int, ...]] = field(default_factory=set)
    """The ids on which rows of edits came out right."""


@dataclass
class Lab:
    """A model that runs, the weights in question, and what it is run on: windows of a text, or contexts."""

    runnable: Runnable
    runner: Runner
    tokens: Tokens
    weights: tuple[Weight, ...]
    weights_from: str
    settings: Settings
    windows: tuple[Window, ...]
    calibration: tuple[Window, ...]
    """Windows to calibrate on, none of those that are judged; none where the experiment does not calibrate."""
    text: Text | None
    """What the windows are of; null where there are contexts."""
    contexts: tuple[tuple[int, ...], ...]
    protocol: dict[str, Any]
    progress: Progress
    token: str | None = None
    """Of the Hub, for those who open other revisions."""
    known: Known = field(default_factory=Known)
    runs: int = field(default=0, init=False)
    """How often the text was run, as a row of a pass or by itself."""

    def losses(self, arms: Sequence[Arm], *, runner: Runner | None = None) -> Losses:
        """Return the mean loss of each arm over each window.

        Arms of the same change, or of none, are rows of the same passes; those of none through another `runner` where
        one is given. Raises ForwardError where the model cannot be run so, or the untouched one's loss is no number.
        """
        found = np.empty((len(arms), len(self.windows)))
        for change in dict.fromkeys(arm.change for arm in arms):
            rows = [number for number, arm in enumerate(arms) if arm.change is change]
            what = "arms" if change is None else arms[rows[0]].name
            self._run((runner or self.runner) if change is None else self.changed(change), arms, rows, found, what)
        untouched = runner is None and arms[0].edits == UNTOUCHED and arms[0].change is None
        if untouched and not np.isfinite(found[0]).all():
            raise self.not_finite()
        return found

    def not_finite(self) -> ForwardError:
        """Return the error that the untouched model gives no number."""
        return ForwardError(
            f"{self.runner.name}: what it says of {self.protocol['data']} is not finite in {self.runner.dtype}: its "
            "weights hold NaN or Inf, or more than this dtype has (--dtype)"
        )

    def measure(self, arms: Sequence[Arm]) -> tuple[Measured, ...]:
        """Return the untouched model and these arms with what each costs over all windows."""
        return measured_of([ORIGINAL, *arms], self.losses([ORIGINAL, *arms]))

    def _run(self, runner: Runner, arms: Sequence[Arm], rows: Sequence[int], found: Losses, what: str) -> None:
        """Put the mean losses of the arms of these numbers into their rows of `found`; what is known is not run."""
        known = self.known.losses.setdefault(runner, {})
        pairs = {
            (number, window): (self.windows[window], arms[number].of(window))
            for window in range(len(self.windows))
            for number in rows
        }
        new = {pair: number for (number, _), pair in pairs.items() if pair not in known}
        advance = counted(self.progress, what, len(new))
        for pair, losses in zip(new, token_losses(runner, list(new), advance), strict=True):
            known[pair] = float(losses.mean(dtype=np.float64))
        for place, pair in pairs.items():
            found[place] = known[pair]
        self.runs += len(set(new.values()))

    def changed(self, change: ChangeTensor) -> Runner:
        """Return a runner of the same model with its weights changed as they are loaded.

        One that nobody needs any longer is freed first: its model refers to itself, and would wait for the collector.
        """
        gc.collect()
        runner, _ = self.runnable.build(device=self.settings.device, dtype=self.settings.dtype, change=change)
        run_like(runner, self.runner)
        return runner

    def begun(self, *, bos: bool) -> Lab:
        """Return the lab with windows that begin with the token that begins a text, or go without it.

        Raises ForwardError where the tokenizer has none.
        """
        assert self.text is not None
        settings = replace(self.settings, bos=bos)
        return replace(self, settings=settings, windows=_windows(self.text, self.tokens, settings)[0])


def measured_of(arms: Sequence[Arm], losses: Losses) -> tuple[Measured, ...]:
    """Return arms with what each costs against the first of them, by their losses."""
    return tuple(
        Measured(arm.name, arm.zeroed, cost_of(losses[0], own), facts=arm.facts)
        for arm, own in zip(arms, losses, strict=True)
    )


@dataclass(frozen=True)
class Data:
    """What an experiment needs of texts: one to measure losses on, one to calibrate on, or passages."""

    text: Text | None = None
    calibration: Text | None = None
    passages: Passages | None = None
    token: str | None = None
    """Of the Hub, with which they were read."""


def read_data(experiment: Experiment, settings: Settings, *, token: str | None) -> Data:
    """Return the data of an experiment. Raises SourceError where they cannot be had."""
    if experiment.needs == "tasks":
        return Data(token=token)
    if experiment.needs == "prompts":
        return Data(passages=read_passages(settings.prompts_data, token=token), token=token)
    other = None if settings.calibrate is None else read_text(settings.calibrate, token=token)
    return Data(read_text(settings.data, token=token), other, token=token)


@dataclass(frozen=True)
class Subject:
    """A model that is ready to run, and the weights of it that experiments are about."""

    runnable: Runnable
    runner: Runner
    tokens: Tokens
    weights: tuple[Weight, ...]
    weights_from: str
    known: Known = field(default_factory=Known)


def open_subject(source: Source, settings: Settings, *, progress: Progress, most: int = MOST_WEIGHTS) -> Subject:
    """Return a model with its weights, `most` of those that nobody named. Raises AnalyzerError where it has none."""
    coordinates, weights_from = weights_asked(source, settings, progress, most=most)
    runnable = open_runnable(source, tower=settings.tower)
    values = values_in(runnable, coordinates)
    progress("building the model", 0, 1)
    runner, tokens = runnable.build(device=settings.device, dtype=settings.dtype)
    progress("building the model", 1, 1)
    weights = tuple(Weight(coordinate, value) for coordinate, value in values.items())
    return Subject(runnable, runner, tokens, weights, weights_from)


def open_lab(subject: Subject, data: Data, experiment: Experiment, settings: Settings, *, progress: Progress) -> Lab:
    """Return the lab of an experiment. Raises AnalyzerError where the model cannot be run on the data."""
    runner, tokens, text = subject.runner, subject.tokens, data.text
    windows: tuple[Window, ...] = ()
    calibration: tuple[Window, ...] = ()
    contexts: tuple[tuple[int, ...], ...] = ()
    protocol: dict[str, Any] = {}
    if text is not None:
        windows, length = _windows(text, tokens, settings)
        protocol = text.facts
        if (other := data.calibration) is not None:
            calibration, _ = _windows(other, tokens, settings)
            protocol |= {"calibration": other.facts | {"windows": len(calibration)}}
        elif experiment.calibrates:
            half = len(windows) // 2
            if not half:
                raise ForwardError(
                    f"the text {text.name} has one window of {length:,} tokens, and one more is needed to calibrate "
                    "on: give a longer text (--data), or another one (--calibrate)"
                )
            calibration, windows = windows[:half], windows[half:]
            protocol |= {"calibration": {"data": text.name, "windows": half}}
        predicted = sum(len(window.places) for window in windows)
        protocol |= {"windows": len(windows), "length": length, "tokens": predicted, "bos": settings.bos}
    if data.passages is not None:
        contexts = tuple(contexts_of(data.passages, tokens, most=settings.limit))
        protocol = data.passages.facts | {"prompts": len(contexts), "tokens": sum(map(len, contexts))}
    texts = [window.ids for window in windows[:1]] or contexts or [tuple(tokens.ids(PAPER_PROMPT))]
    if (longest := max(texts, key=len)) not in subject.known.checked:
        _check(runner, longest)
        subject.known.checked.add(longest)
    protocol |= {"dtype": runner.dtype, "device": runner.device, "seed": settings.seed}
    return Lab(
        runnable=subject.runnable,
        runner=runner,
        tokens=tokens,
        weights=subject.weights,
        weights_from=subject.weights_from,
        settings=settings,
        windows=windows,
        calibration=calibration,
        text=text,
        contexts=contexts,
        protocol=protocol,
        progress=progress,
        token=data.token,
        known=subject.known,
    )


def _windows(text: Text, tokens: Tokens, settings: Settings) -> tuple[tuple[Window, ...], int]:
    return windows_of(text, tokens, most=settings.windows, length=settings.length, bos=settings.bos)


def _check(runner: Runner, ids: Sequence[int]) -> None:
    """Raise ForwardError where the model says nothing of a next token, or rows of edits do not come out right."""
    if not runner.has_loss:
        raise ForwardError(f"{runner.name}: an encoder by itself has no loss: leave --tower out")
    check_rows(runner, ids)
    ids = ids[:CHECKED]
    trace = runner.trace(ids)
    if not runner.masked and runner.start is None and not runner.is_causal(ids, trace):
        raise ForwardError(f"{runner.name} is no causal and no masked language model: its loss would mean nothing")
