"""Table 1's zero-shot side: tasks of lm-evaluation-harness with the weights zeroed, all arms in one call."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analyzer.base.errors import AnalyzerError, ForwardError, reason_of, shown
from analyzer.base.text import count_of
from analyzer.experiments.lab.records import Experiment, Measured, Option, Outcome, whole_number
from analyzer.forward.edits import UNTOUCHED, zeroing

if TYPE_CHECKING:
    from analyzer.experiments.lab.opening import Lab

TASKS = ("winogrande", "arc_challenge", "arc_easy", "piqa", "sciq", "hellaswag", "lambada_openai")
RESAMPLES = 1000  # of a standard error that has no formula


def run(lab: Lab, *, tasks: Sequence[str], limit: int | None, include: str | None) -> Outcome:
    """Ask the untouched model and the one without the weights, all and each, what the tasks ask.

    Raises ForwardError where the harness is not installed, has no such task or cannot have its data, or a task needs
    more than likelihoods.
    """
    if lab.runner.masked or lab.runner.start is not None:
        raise ForwardError(f"{lab.runner.name} does not go on with a text: tasks needs a causal language model")
    try:
        import lm_eval

        from analyzer.experiments.data.harness import Respondent
    except ImportError as error:
        raise ForwardError("tasks needs lm-evaluation-harness: pip install 'lm-eval>=0.4.9'") from error
    coordinates = [weight.coordinate for weight in lab.weights]
    sets = {"original": UNTOUCHED}
    if coordinates[1:]:
        sets["all zeroed"] = zeroing(coordinates)
    sets |= {f"{c} zeroed": zeroing([c]) for c in coordinates}
    respondent = Respondent(lab.runner, lab.tokens, list(sets.values()), lab.progress)
    results = []
    for number in range(len(sets)):
        respondent.arm = number
        results.append(_evaluated(respondent, tasks, limit, include))
    lab.runs += len(sets)
    lab.protocol |= {
        "data": f"lm-evaluation-harness {lm_eval.__version__}",
        "tasks": list(tasks),
        "limit": limit,
        "prompts": len(respondent.answered),
    }
    if not all(math.isfinite(answers[0][0]) for answers in respondent.answered.values()):
        raise lab.not_finite()
    arms = tuple(
        Measured(name, len(edits.edits), None, facts={"mean": _mean(scores), "scores": scores})
        for (name, edits), scores in zip(sets.items(), results, strict=True)
    )
    header = ("task", "metric", "arm", "value", "standard error")
    return Outcome(arms, tuple(_findings(arms)), tables=(("What the tasks say", header, list(_rows(arms))),))


Scores = Mapping[str, Mapping[str, Any]]
"""Of each task its metrics, with `METRIC_stderr` for each, null where there is none."""


def _evaluated(model: Any, tasks: Sequence[str], limit: int | None, include: str | None) -> Scores:
    """Return what the harness says of one arm; its bars and warnings go nowhere."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = simple_evaluate(
                model,
                tasks=list(tasks),
                limit=limit,
                task_manager=TaskManager(include_path=include),
                bootstrap_iters=RESAMPLES,
                log_samples=False,
            )
    except AnalyzerError:
        raise
    except Exception as error:  # whatever a task, its data or the network has wrong
        raise ForwardError(
            f"lm-evaluation-harness cannot run {shown(', '.join(tasks), 120)}: {shown(reason_of(error), 300)}: name "
            "other tasks (--tasks), or see that it reaches their data"
        ) from error
    return {
        task: {
            metric.removesuffix(",none"): value if isinstance(value, float | int) else None
            for metric, value in metrics.items()
            if "," in metric
        }
        for task, metrics in found["results"].items()
    }


def _mean(scores: Scores) -> float | None:
    """Return the mean accuracy of those tasks that have one."""
    found = [metrics["acc"] for metrics in scores.values() if metrics.get("acc") is not None]
    return sum(found) / len(found) if found else None


def _findings(arms: Sequence[Measured]) -> Iterator[str]:
    original = arms[0].facts["mean"]
    for arm in arms[1:]:
        if original is not None:
            tasks = count_of(sum("acc" in metrics for metrics in arm.facts["scores"].values()), "task")
            yield f"{arm.name}, the mean accuracy of {tasks} goes from {original:.2%} to {arm.facts['mean']:.2%}."


def _rows(arms: Sequence[Measured]) -> Iterator[Sequence[str]]:
    for task, metrics in arms[0].facts["scores"].items():
        for metric in (each for each in metrics if "_stderr" not in each):
            for arm in arms:
                here = arm.facts["scores"][task]
                error = here.get(f"{metric}_stderr")
                yield task, metric, arm.name, f"{here[metric]:.4f}", "-" if error is None else f"{error:.4f}"


EXPERIMENT = Experiment(
    name="tasks",
    says="""Run zero-shot tasks of lm-evaluation-harness with the weights zeroed (Table 1).

    All arms in one call, for any task that is judged by likelihoods. Needs the extra `tasks`.

    \b
    Examples:
      superweight experiment tasks ./my-model --limit 100
      superweight experiment tasks ./my-model --tasks arc_easy --tasks mmlu --json
    """,
    run=run,
    needs="tasks",
    picture="mean",
    options=(
        Option("tasks", "Name of a task or group; may be given again.", str, TASKS, "NAME", several=True),
        Option("limit", "How many examples of each task to run; all without it.", whole_number, None, "N"),
        Option("include", "Folder of tasks of your own, as YAML; code that these name is run.", str, None, "DIR"),
    ),
    in_all={"limit": 100},
    less="100 examples a task",
)
