"""The click commands: parse, call, render; nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer import __version__
from analyzer.catalog_cli import catalog
from analyzer.errors import shown
from analyzer.options import (
    cache_option,
    catalog_option,
    check_text,
    common_options,
    json_option,
    known_option,
    print_json,
    quiet_option,
    run_options,
    score_option,
    token_option,
    top_option,
)
from analyzer.progress import progress_bars

if TYPE_CHECKING:
    from analyzer.diff_records import DiffResult
    from analyzer.records import VerifyResult


class Layers(click.ParamType[tuple[range, ...]]):
    """Layer numbers and ranges of them, such as 0-10,24."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[range, ...]:
        """Return one range for each part."""
        ranges = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
            if match is None or int(match[2] or match[1]) < int(match[1]):
                self.fail(f"{shown(part)!r} is neither a layer nor a range such as 0-10", param, ctx)
            ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
        return tuple(ranges)


def _revisions(_ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    names = [] if value is None else [name.strip() for name in value.split(",")]
    if value is not None and (len(names) < 2 or "" in names or len(set(names)) < len(names)):
        raise click.BadParameter("names two or more revisions, each once, with commas between", param=param)
    return names


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="superweight")
def cli() -> None:
    """Find, verify and catalog the super weights of large language models.

    MODEL is a Hub id (owner/name or owner/name@revision) or a local folder with safetensors.

    \b
    Example:
      superweight analyze HuggingFaceTB/SmolLM2-135M
    """


@cli.command()
@common_options
@top_option
@score_option
@click.option("--layers", type=Layers(), metavar="0-10,24", help="Only these layers.  [default: all]")
@click.option(
    "--tensors",
    "pattern",
    metavar="PATTERN",
    help="Take the tensors of these names, such as 'blk.*.ffn_down', for down projections; the first number is the "
    "layer, a second the expert.",
)
@cache_option
def scan(
    as_json: bool,
    quiet: bool,
    top: int,
    score: str,
    layers: tuple[range, ...] | None,
    pattern: str | None,
    use_cache: bool,
    **where: Any,
) -> None:
    """Rank the outlier weights of every down projection, without running anything.

    Reads only the down projections, also from the Hub, and of those only what no earlier scan has read.

    \b
    Examples:
      superweight scan mistralai/Mistral-7B-v0.1
      superweight scan openai/gpt-oss-20b --score gain
      superweight scan ./my-model --top 5 --json | jq '.outliers[0]'
    """
    from analyzer.analyze import run_scan
    from analyzer.render import render_scan
    from analyzer.source import open_source

    with progress_bars(quiet) as progress:
        source = open_source(**where)
        result = run_scan(
            source, layers=layers, pattern=pattern, score=score, top=top, use_cache=use_cache, progress=progress
        )
    missing = sorted(set(range(result.num_layers)) - {tensor.layer for tensor in result.tensors})
    if layers is None and missing:
        names = ", ".join(map(str, missing[:5])) + (", …" if missing[5:] else "")
        click.echo(f"warning: no down projection in layer {names}: not an MLP block, or not in the index", err=True)
    _print(result, as_json, render_scan)


@cli.command()
@common_options
@run_options
@click.option(
    "--early-stop",
    is_flag=True,
    help="Stop once a super activation has persisted two blocks, reading no more; no effects are measured.",
)
def verify(
    as_json: bool,
    quiet: bool,
    prompt: str,
    text_file: Path | None,
    prompts_file: Path | None,
    plot: Path | None,
    early_stop: bool,
    device: str,
    dtype: str,
    **where: Any,
) -> None:
    """Run one prompt through the model: which weights are super weights, and what zeroing them does.

    The weights come block by block: a model may be larger than memory.

    \b
    Examples:
      superweight verify ./my-model
      superweight verify HuggingFaceTB/SmolLM2-135M --json | jq '.super_weights[0]'
      superweight verify mistralai/Mistral-7B-v0.1 --early-stop
    """
    from analyzer.analyze import evaluation_text, read_prompts, read_text, run_verify
    from analyzer.render import render_verify
    from analyzer.source import open_source

    _check_plot(plot)
    text = read_text(text_file) if text_file else evaluation_text()
    prompts = read_prompts(prompts_file) if prompts_file or not early_stop else []
    with progress_bars(quiet) as progress:
        source = open_source(**where)
        *_, result = run_verify(
            source,
            prompt=prompt,
            text=text,
            prompts=prompts,
            early_stop=early_stop,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    try:
        _plot(result, plot)
    finally:  # a full disk must not cost the result as well
        _print(result, as_json, render_verify)


@cli.command()
@common_options
@top_option
@score_option
@run_options
@catalog_option
@click.option("--family", help="Family, and so file, of the entry.  [default: from the model's name]")
@click.option(
    "--model-id",
    callback=check_text,
    help="Name of a local folder's model, as owner/name.  [default: the folder's name]",
)
@click.option("--note", callback=check_text, help="A sentence kept in the entry, such as where the weights came from.")
def analyze(
    as_json: bool,
    quiet: bool,
    top: int,
    score: str,
    prompt: str,
    text_file: Path | None,
    prompts_file: Path | None,
    plot: Path | None,
    device: str,
    dtype: str,
    folder: Path,
    family: str | None,
    model_id: str | None,
    note: str | None,
    **where: Any,
) -> None:
    """Scan, verify, and write the catalog entry.

    \b
    Examples:
      superweight analyze HuggingFaceTB/SmolLM2-135M
      superweight analyze ./my-model --model-id me/my-model --catalog ./catalog
    """
    from analyzer.analyze import evaluation_text, read_prompts, read_text, run_analyze
    from analyzer.catalog import check_destination, family_of, reported_on, save_entry, with_record
    from analyzer.records import plain
    from analyzer.render import render_verify
    from analyzer.render_catalog import render_agreement
    from analyzer.reported import agreement
    from analyzer.source import open_source

    _check_plot(plot)
    text = read_text(text_file) if text_file else evaluation_text()
    prompts = read_prompts(prompts_file)
    with progress_bars(quiet) as progress:
        source = open_source(**where, model_id=model_id)
        family = family or family_of(source.model)
        check_destination(folder, family)  # before minutes of work
        reported = reported_on(with_record(folder), source.model)
        scanned, result, entry = run_analyze(
            source,
            prompt=prompt,
            text=text,
            prompts=prompts,
            score=score,
            top=top,
            note=note,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    agreed = agreement(entry, reported)
    path: Path | None = None
    try:
        path = save_entry(folder, family, entry)
        _plot(result, plot)
    finally:  # a full disk must not cost the result as well
        if as_json:
            catalog_file = str(path) if path else None
            outliers = plain(scanned.outliers)
            print_json(
                {**plain(result), "outliers": outliers, "agrees_with_reported": agreed, "catalog_file": catalog_file}
            )
        else:
            click.echo(render_verify(result, path, render_agreement(agreed)))


@cli.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="[B]", required=False)
@click.option(
    "--revisions",
    callback=_revisions,
    metavar="a,b,c",
    help="In place of B: follow the outliers of the model A through these branches, tags or commits.",
)
@top_option
@score_option
@cache_option
@token_option
@known_option
@click.option("--csv", "as_csv", is_flag=True, help="Print one table as CSV on stdout, nothing else.")
@json_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE.png",
    help="With --revisions: draw the weights that were followed.",
)
@quiet_option
def diff(
    old: str,
    new: str | None,
    revisions: list[str],
    as_csv: bool,
    as_json: bool,
    plot: Path | None,
    folder: Path | None,
    quiet: bool,
    **how: Any,
) -> None:
    """Show what changed between two versions: super weights, outliers, and where in the network.

    A and B are models, revisions of one (owner/name@revision), folders, or results saved with --json. Files that two
    models share are not read. The super weights are those of saved results, or those that the catalog knows.

    \b
    Examples:
      superweight diff EleutherAI/pythia-410m@step1000 EleutherAI/pythia-410m@step143000
      superweight diff EleutherAI/pythia-410m --revisions step1000,step143000 --plot steps.png
      superweight diff before.json after.json
    """
    from analyzer.diff_csv import diff_csv, history_csv
    from analyzer.diff_records import History
    from analyzer.records import plain
    from analyzer.render_diff import render_diff, render_history
    from analyzer.versions import run_diff, run_history

    if (new is None) == (not revisions):
        raise click.UsageError("give either B or --revisions")
    if as_csv and as_json:
        raise click.UsageError("give either --csv or --json")
    if plot and not revisions:
        raise click.UsageError("--plot draws --revisions")
    _check_plot(plot)
    result: DiffResult | History
    more: dict[str, Any] = {}
    with progress_bars(quiet) as progress:
        if new is not None:
            result = run_diff(old, new, catalog=folder, progress=progress, **how)
            text = diff_csv(result) if as_csv else render_diff(result)
            more = {"identical": result.identical}
        else:
            result = run_history(old, revisions, catalog=folder, progress=progress, **how)
            text = history_csv(result) if as_csv else render_history(result)
    try:
        if plot and isinstance(result, History):
            from analyzer.plots import plot_history

            plot_history(result, plot)
    finally:  # a full disk must not cost the result as well
        if as_json:
            print_json({**plain(result), **more})
        else:
            click.echo(text, nl=not as_csv)


@cli.command()
@click.option("--clear", is_flag=True, help="Delete every entry.")
@json_option
def cache(clear: bool, as_json: bool) -> None:
    """Show where the results of scanned tensors of the Hub are kept, and how much they take.

    \b
    Example:
      superweight cache --clear
    """
    from analyzer.cache import ResultCache, cache_folder

    kept = ResultCache(cache_folder())
    entries, size = kept.clear() if clear else kept.size()
    if as_json:
        print_json({"folder": str(kept.folder), "entries": entries, "bytes": size, "cleared": clear})
    else:
        click.echo(f"{'Cleared' if clear else 'Kept in'} {shown(kept.folder)}: {entries:,} entries, {size:,} bytes.")


cli.add_command(catalog)


def _check_plot(path: Path | None) -> None:
    if path is not None:  # before minutes of work
        from analyzer.plots import check_plot

        check_plot(path)


def _plot(result: VerifyResult, path: Path | None) -> None:
    if path is not None:
        from analyzer.plots import plot_verification

        plot_verification(result, path)


def _print(result: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    from analyzer.records import plain

    if as_json:
        print_json(plain(result))
    else:
        click.echo(render(result))
