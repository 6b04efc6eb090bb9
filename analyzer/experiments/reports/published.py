"""What was published of a model, as far as it can be checked: read in public code or a source that is named."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def published_of(model: str, experiment: str) -> tuple[dict[str, Any], ...]:
    """Return what published.json has of an experiment on a model of this name, whoever keeps it on the Hub."""
    name = model.partition("@")[0].rpartition("/")[2].lower()
    text = resources.files("analyzer.experiments.reports").joinpath("published.json").read_text("utf-8")
    return tuple(
        {key: each[key] for key in ("what", "value", "source")}
        for each in json.loads(text)
        if each["experiment"] == experiment and name in each["models"]
    )
