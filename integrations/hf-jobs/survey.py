#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["superweight-analyzer @ git+https://github.com/-owner-/superweight@v0.1.0"]
#
# [tool.hf-jobs]
# name = "superweight-survey"
# secrets = ["HF_TOKEN"]
# timeout = "12h"
# ///
"""Surveys one shard of a list of models, and pushes its table to a dataset on the Hub: a job of Hugging Face Jobs.

hf jobs uv run survey.py -- plan.jsonl --publish me/super-weights --shard 1/8 --do scan

What is not an option of this script is one of `superweight survey run`. With `webhook` in the place of a list it
surveys the commits of the event that has triggered it. The guide's page jobs.md has the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from analyzer.base.errors import AnalyzerError, SourceError
from analyzer.publish.publication import publish
from analyzer.publish.repository import Repository
from analyzer.survey.results.collecting import collect
from analyzer.survey.store import JOB_FOLDER

WEBHOOK, EVENT = "webhook", "WEBHOOK_PAYLOAD"
BRANCHES = "refs/heads/"
PAUSES_S = (5, 15, 60, 180, 300)  # until a table is pushed again: every shard commits to the same branch
T = TypeVar("T")


def main() -> int:
    """Survey the shard and push its table; returns the process's status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("models", metavar="LIST|PLAN|webhook", help="as `superweight survey run` has it, or a webhook")
    parser.add_argument("--publish", metavar="OWNER/NAME", required=True, help="the dataset, made if missing")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="do the I-th of N parts")
    parser.add_argument("--out", metavar="DIR", help="keep the results here: a job goes on where one ended")
    asked, options = parser.parse_known_args()
    if asked.models == WEBHOOK and EVENT not in os.environ:
        print("no event has triggered this job: it is there for `hf webhooks create --job-id`")
        return 0
    try:
        with tempfile.TemporaryDirectory() as scratch:
            models = Path(scratch, "models.txt")
            is_event = asked.models == WEBHOOK
            models.write_bytes(models_of(os.environ[EVENT]) if is_event else Path(asked.models).read_bytes())
            if not models.stat().st_size:
                print("the event has no new commit on a branch of a model: nothing to survey")
                return 0
            open_dataset(asked.publish)
            out = Path(asked.out or scratch, shard_name(asked.shard))
            command = [sys.executable, "-m", "analyzer", "survey", "run", models, "--out", out, "--shard", asked.shard]
            if status := subprocess.run([*command, *options]).returncode:
                return status
            table, collected = collect(out, None)
            tables = {f"data/{table_name(models.read_bytes(), out)}.parquet": table}
            no_catalog = Path(scratch, "none")
            pushed = until_it_succeeds(lambda: publish(no_catalog, asked.publish, tables=tables, replace=True))
    except (AnalyzerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{collected.rows:,} rows: {pushed.commit_url or f'{pushed.url} has them already'}")
    return 0


def models_of(event: str) -> bytes:
    """Return the models of a webhook's event as a list: every new commit on a branch, but not those of pull requests.

    Raises ValueError where it is no such event.
    """
    try:
        content = json.loads(event)
        repository, moved = content["repo"], content.get("updatedRefs") or ()
        commits = [each["newSha"] for each in moved if each["ref"].startswith(BRANCHES)]
        if repository["type"] != "model":
            return b""
        return "".join(f"{repository['name']}@{commit}\n" for commit in dict.fromkeys(commits) if commit).encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{EVENT} is no event of a webhook of the Hub") from error


def shard_name(shard: str) -> str:
    """Return what names a shard's files.

    >>> shard_name("2/8")
    '00002-of-00008'
    """
    number, _, of = shard.partition("/")
    return f"{int(number):05}-of-{int(of):05}"


def table_name(models: bytes, out: Path) -> str:
    """Return the name of a shard's table: that of any other models, or of another job on these, has another name."""
    jobs = sorted(path.name for path in (out / JOB_FOLDER).iterdir())
    return f"survey-{hashlib.sha256(models + json.dumps(jobs).encode()).hexdigest()[:8]}-{out.name}"


def open_dataset(repo_id: str) -> None:
    """Make the dataset if it is missing, before hours are spent on what cannot be pushed. Raises SourceError."""
    repository = Repository(repo_id, None)
    repository.check_token()
    if not repository.look():
        try:
            repository.create(private=False)
        except SourceError:
            if not repository.look():  # another shard was not quicker
                raise


def until_it_succeeds(act: Callable[[], T]) -> T:
    """Return what `act` does, in the end; raises its SourceError where it has failed too often."""
    for pause_s in PAUSES_S:
        try:
            return act()
        except SourceError as error:
            print(f"{error}; in about {pause_s} s it is done again", file=sys.stderr)
            time.sleep(pause_s * random.uniform(0.5, 1.5))
    return act()


if __name__ == "__main__":
    sys.exit(main())
