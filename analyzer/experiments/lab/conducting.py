"""An experiment from its model's name to its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from analyzer.analyze.running import open_runnable
from analyzer.analyze.verifying import values_in
from analyzer.base.errors import AnalyzerError
from analyzer.base.progress import Progress
from analyzer.experiments.lab.asked import Settings, weights_asked
from analyzer.experiments.lab.opening import Data, Subject, open_lab, open_subject, read_data
from analyzer.experiments.lab.records import Experiment, Facts, Result, Weight
from analyzer.experiments.reports.published import published_of
from analyzer.source.source import Source

LENGTH_IN_ALL, WINDOWS_IN_ALL = 1024, 8  # of `all`, where nothing else is asked for
MOST_WEIGHTS_IN_ALL = 2


def conduct(
    source: Source,
    experiment: Experiment,
    settings: Settings,
    *,
    token: str | None = None,
    progress: Progress = lambda *_: None,
    static: bool = False,
    **options: Any,
) -> Result:
    """Run an experiment on a model, or tell what is `static` of it, without a run.

    `source` is what open_model returns, `options` are the experiment's own. Raises AnalyzerError where model, weights
    or data cannot be had, or the model cannot be run on them.
    """
    if static:
        chosen = {option.name: option.default for option in experiment.options} | options
        return _static(source, experiment, settings, chosen, progress)
    data = read_data(experiment, settings, token=token)
    subject = open_subject(source, settings, progress=progress)
    return _conduct_on(subject, data, experiment, settings, options, progress)


def conduct_all(
    source: Source,
    experiments: Sequence[Experiment],
    settings: Settings,
    *,
    token: str | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[tuple[Experiment, Result | AnalyzerError]]:
    """Yield each experiment with its result, or with why it has none, on a model that is opened once.

    Their options are those of `in_all`; where `settings` leave windows and length open, they are fewer than usual.
    Raises AnalyzerError where the model or its weights cannot be had, or the data of no experiment.
    """
    data = {experiment.name: _or_error(read_data, experiment, settings, token=token) for experiment in experiments}
    if all(isinstance(each, AnalyzerError) for each in data.values()):
        raise next(iter(data.values()))
    subject = open_subject(source, settings, progress=progress, most=MOST_WEIGHTS_IN_ALL)
    length = settings.length or min(LENGTH_IN_ALL, subject.tokens.max_tokens or LENGTH_IN_ALL)
    windows = settings.windows or WINDOWS_IN_ALL
    for experiment in experiments:
        own, found = dict(experiment.in_all), data[experiment.name]
        sizes = {name: min(most, own.pop(name, most)) for name, most in (("windows", windows), ("length", length))}
        if not isinstance(found, AnalyzerError):
            tell = partial(_tell, progress, experiment.name)
            found = _or_error(_conduct_on, subject, found, experiment, replace(settings, **sizes), own, tell)
        if isinstance(found, Result) and experiment.less:
            less = f"{experiment.less}; the full set: superweight experiment {experiment.name}"
            found = replace(found, protocol={**found.protocol, "less": less})
        yield experiment, found


def _tell(progress: Progress, name: str, what: str, done: int, total: int) -> None:
    progress(f"{name}: {what}", done, total)


def _or_error(do: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """Return what a function does, or the AnalyzerError that it raises."""
    try:
        return do(*arguments, **more)
    except AnalyzerError as error:
        return error


def _conduct_on(
    subject: Subject, data: Data, experiment: Experiment, settings: Settings, options: Facts, progress: Progress
) -> Result:
    lab = open_lab(subject, data, experiment, settings, progress=progress)
    chosen = {option.name: option.default for option in experiment.options} | dict(options)
    outcome = experiment.run(lab, **chosen)
    lab.runnable.checkpoint.source.check_unchanged()
    source = lab.runnable.checkpoint.source
    return Result(
        experiment=experiment.name,
        model=source.model,
        revision=source.revision,
        commit=source.commit,
        weights=lab.weights,
        weights_from=lab.weights_from,
        protocol=lab.protocol | {"runs": lab.runs},
        outcome=outcome,
        published=published_of(source.model, experiment.name),
        notes=lab.runner.notes,
        picture=experiment.picture,
    )


def _static(source: Source, experiment: Experiment, settings: Settings, chosen: Facts, progress: Progress) -> Result:
    """Return what an experiment tells of the stored weights alone; of a model on the Hub, only those are read."""
    assert experiment.static is not None
    coordinates, weights_from = weights_asked(source, settings, progress, static=True)
    runnable = open_runnable(source, tower=settings.tower, download=False)
    weights = tuple(Weight(c, value) for c, value in values_in(runnable, coordinates).items())
    outcome = experiment.static(runnable, weights, **chosen)
    source = runnable.checkpoint.source
    source.check_unchanged()
    return Result(
        experiment=experiment.name,
        model=source.model,
        revision=source.revision,
        commit=source.commit,
        weights=weights,
        weights_from=weights_from,
        protocol={"static": True, "bytes_read": runnable.checkpoint.bytes_read},
        outcome=outcome,
        published=published_of(source.model, experiment.name),
        notes=(),
    )
