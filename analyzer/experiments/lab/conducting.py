"""An experiment from its model's name to its result."""

from __future__ import annotations

from typing import Any

from analyzer.base.progress import Progress
from analyzer.experiments.lab.asked import Settings
from analyzer.experiments.lab.opening import open_lab
from analyzer.experiments.lab.records import Experiment, Result
from analyzer.experiments.reports.published import published_of
from analyzer.source.source import Source


def conduct(
    source: Source,
    experiment: Experiment,
    settings: Settings,
    *,
    token: str | None = None,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> Result:
    """Run an experiment on a model.

    `source` is what open_model returns, `options` are the experiment's own. Raises AnalyzerError where model, weights
    or data cannot be had, or the model cannot be run on them.
    """
    lab = open_lab(source, experiment, settings, token=token, progress=progress)
    chosen = {option.name: option.default for option in experiment.options} | options
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
