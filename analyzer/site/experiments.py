"""The results of all experiments on a model -> a folder: JSON each, pictures, and one page that needs nothing else."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyzer.base.atomic import check_writable, write_whole
from analyzer.base.errors import AnalyzerError, PlotError, shown
from analyzer.base.text import WORDS
from analyzer.experiments.lab.records import Experiment, Result
from analyzer.experiments.reports.report import PUBLISHED, PUBLISHED_HEADER, arms_cells, protocol_said, published_cells
from analyzer.site.page import PAGE, data_of, environment_of_pages, literal, policy_of
from analyzer.source.source import Source

GENERATOR = b'<meta name="generator" content="superweight-analyzer experiment all">'
GENERATOR_WITHIN = 4096  # bytes from the start of the page
CLASSES = {True: "holds", False: "fails", None: "open"}


@dataclass(frozen=True)
class Section:
    """An experiment as the page has it: its result with its picture, or why it has none; null before it ran."""

    experiment: Experiment
    result: Result | AnalyzerError | None
    picture: bytes = b""


def section_of(experiment: Experiment, result: Result | AnalyzerError) -> Section:
    """Return what the page has of an experiment that ran."""
    if isinstance(result, AnalyzerError):
        return Section(experiment, result)
    from analyzer.base.pictures import png_of
    from analyzer.experiments.reports.pictures import draw

    return Section(experiment, result, png_of(draw(result)))


def check_folder(folder: Path, names: Sequence[str]) -> None:
    """Make a folder for the results of experiments of these names, before there are any.

    Raises PlotError where it cannot be written, or has anything that an earlier run did not write.
    """
    ours = {PAGE, *(f"{name}.{kind}" for name in names for kind in ("json", "png"))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside = {path.name for path in folder.iterdir() if path.name[0] != "."}
        page = check_writable(folder / PAGE)
        foreign = sorted(inside - ours) or ([PAGE] if page.exists() and not _is_ours(page) else [])
    except OSError as error:
        raise PlotError(f"cannot write into {shown(folder)}: {error.strerror}; give another folder (--out)") from error
    if foreign:
        why = f"{shown(foreign[0], 80)} in it is of no earlier run"
        raise PlotError(f"cannot write into {shown(folder)}: {why}; give another folder (--out)")


def write_section(section: Section, folder: Path) -> None:
    """Write an experiment's JSON and its picture, atomically; of one without a result none are left from before."""
    result = section.result
    files = {f"{section.experiment.name}.{kind}": b"" for kind in ("json", "png")}
    if isinstance(result, Result):
        text = json.dumps(result.as_json(), indent=2, allow_nan=False) + "\n"
        files = dict(zip(files, (text.encode("utf-8"), section.picture), strict=True))
    _write(files, folder)


def write_page(source: Source, sections: Sequence[Section], folder: Path) -> Path:
    """Write the page, atomically, and return where it is. Raises PlotError where it cannot be written."""
    _write({PAGE: render_page(source, sections).encode("utf-8")}, folder)
    return folder / PAGE


def render_page(source: Source, sections: Sequence[Section]) -> str:
    """Return the page, the same for the same results: it has no script, and loads nothing."""
    style = data_of("page.css") + data_of("experiments.css")
    results = [each.result for each in sections if isinstance(each.result, Result)]
    rendered: str = (
        environment_of_pages()
        .get_template("experiments.html.jinja")
        .render(
            model=source.model,
            revision=source.revision,
            commit=source.commit,
            first=results[0] if results else None,
            sections=[_as_shown(section) for section in sections],
            claims=[(each.experiment, claim) for each in results for claim in each.outcome.claims],
            classes=CLASSES,
            words=WORDS,
            style=literal(style),
            policy=policy_of(style=style, script=None),
        )
    )
    return rendered


def _as_shown(section: Section) -> dict[str, Any]:
    result, experiment = section.result, section.experiment
    found: dict[str, Any] = {"name": experiment.name, "says": inspect.cleandoc(experiment.says).splitlines()[0]}
    if not isinstance(result, Result):
        return found | {"result": None, "error": None if result is None else str(result)}
    tables = [("Arms", *arms_cells(result.outcome.arms)), *result.outcome.tables]
    sources: list[str] = []
    if result.published:
        rows, sources = published_cells(result.published)
        tables.append((PUBLISHED, PUBLISHED_HEADER, rows))
    return found | {
        "result": result,
        "protocol": protocol_said(result.protocol),
        "tables": tables,
        "sources": sources,
        "picture": literal("data:image/png;base64," + base64.b64encode(section.picture).decode("ascii")),
    }


def _is_ours(page: Path) -> bool:
    with page.open("rb") as file:
        return GENERATOR in file.read(GENERATOR_WITHIN)


def _write(files: dict[str, bytes], folder: Path) -> None:
    """Write files into a folder, and remove those that are empty."""
    for name, data in files.items():
        path = folder / name
        try:
            if data:
                write_whole(path, data)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise PlotError(f"cannot write {shown(path)}: {error.strerror}; give another folder (--out)") from error
