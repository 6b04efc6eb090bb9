"""`superweight analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.progress import progress_bars
from analyzer.cli.options import (
    catalog_option,
    check_text,
    common_options,
    more_option,
    plot_option,
    scan_options,
    score_option,
    top_option,
    verify_options,
)
from analyzer.cli.output import check_picture, draw_verification, print_json, printing, warn_of

if TYPE_CHECKING:
    from analyzer.scan.records import ScanSettings
    from analyzer.verify.settings import VerifySettings


@click.command()
@common_options
@scan_options(top_option, score_option, name="scan")
@verify_options(more_option)
@plot_option
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
    scan: ScanSettings,
    settings: VerifySettings,
    plot: Path | None,
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
    from analyzer.analyze.analyzing import analyze_model
    from analyzer.base.records import plain
    from analyzer.catalog.families import family_of
    from analyzer.catalog.files import check_destination, save_entry, with_record
    from analyzer.catalog.lookup import reported_on
    from analyzer.catalog.report import render_agreement
    from analyzer.catalog.reported import agreement
    from analyzer.source.opening import open_model
    from analyzer.verify.report import render_verify

    check_picture(plot)
    with progress_bars(quiet) as progress:
        source = open_model(**where, model_id=model_id)
        family = family or family_of(source.model)
        check_destination(folder, family, source.model)  # before minutes of work
        reported = reported_on(with_record(folder), source.model)
        done = analyze_model(source, settings, scan=scan, note=note, progress=progress)
    agreed = agreement(done.entry, reported)
    path: Path | None = None

    def show() -> None:
        if as_json:
            print_json(
                {
                    **plain(done.verified),
                    "outliers": plain(done.scanned.outliers),
                    "unread": plain(done.scanned.unread),
                    "agrees_with_reported": agreed,
                    "catalog_file": str(path) if path else None,
                }
            )
        else:
            click.echo(render_verify(done.verified, path, render_agreement(agreed)))

    with printing(show):
        path = save_entry(folder, family, done.entry)
        draw_verification(done.verified, plot)
    warn_of(done.scanned.unread, (*done.scanned.notes, *done.verified.notes))
