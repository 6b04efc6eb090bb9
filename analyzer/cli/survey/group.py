"""`superweight survey` as a whole."""

from __future__ import annotations

import click

from analyzer.cli.survey.collect import survey_collect
from analyzer.cli.survey.plan import survey_plan
from analyzer.cli.survey.report import survey_report
from analyzer.cli.survey.run import survey_run
from analyzer.cli.survey.status import survey_status


@click.group()
def survey() -> None:
    """Scan, verify or analyze many models: resumable, on one machine or several, into one table.

    \b
    Example:
      superweight survey run models.txt --out survey
    """


for command in (survey_plan, survey_run, survey_status, survey_collect, survey_report):
    survey.add_command(command)
