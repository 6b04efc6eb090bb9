"""`superweight verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analyzer.base.progress import progress_bars
from analyzer.cli.options import (
    common_options,
    early_stop_option,
    more_option,
    plot_option,
    verify_options,
    weight_and_unit_options,
)
from analyzer.cli.output import check_picture, draw_verification, print_result, printing, warn_of

if TYPE_CHECKING:
    from analyzer.verify.settings import VerifySettings


@click.command()
@common_options
@verify_options(early_stop_option, more_option, *weight_and_unit_options)
@plot_option
def verify(as_json: bool, quiet: bool, settings: VerifySettings, plot: Path | None, **where: Any) -> None:
    """Run one prompt through the model: which weights are super weights, and what zeroing them does.

    The weights come block by block: a model may be larger than memory. With --weight, --weights-of or --expert it says
    what these are and do here, and searches for none.

    \b
    Examples:
      superweight verify ./my-model
      superweight verify HuggingFaceTB/SmolLM2-135M --json | jq '.super_weights[0]'
      superweight verify mistralai/Mistral-7B-v0.1 --early-stop
      superweight verify ./my-model --weight 11,507,1229 --weight 28,507,678
      superweight verify ./my-model --weight 11,507,any --weight 11,any,1229
      superweight verify ./my-mixture --expert 1,68 --expert 2,92
      superweight verify ./my-chat-model --weights-of mistralai/Mistral-7B-v0.1
    """
    from analyzer.analyze.verifying import verify_model
    from analyzer.source.opening import open_model
    from analyzer.verify.report import render_verify

    check_picture(plot)
    with progress_bars(quiet) as progress:
        result = verify_model(open_model(**where), settings, progress=progress)
    with printing(lambda: print_result(result, as_json, render_verify)):
        draw_verification(result, plot)
    warn_of((), result.notes)
