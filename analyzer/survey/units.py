"""Pure: the unit of a survey, the job that it is of, and what becomes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from analyzer import __version__
from analyzer.scan.records import ScanSettings
from analyzer.verify.settings import VerifySettings

PIN = "pin"
JOBS = ("scan", "verify", "analyze")
GONE, GATED, UNSUPPORTED, NETWORK, MEMORY, TIMEOUT, BUG = CLASSES = (
    *("gone", "gated", "unsupported", "network", "memory", "timeout", "bug"),
)
"""Why a unit fails; see work/job.py for what is of which class."""
DONE, FAILED, BUSY, STOPPED = "done", "failed", "busy", "stopped"
"""What becomes of a unit: BUSY is in the hands of another process, STOPPED was given up with all others."""


@dataclass(frozen=True)
class Job:
    """What is done with each model: `do`, with these settings, by this version of the method.

    PIN resolves a model's name to a commit and tells its bytes.
    """

    do: str
    scan: ScanSettings = field(default_factory=ScanSettings)
    verify: VerifySettings | None = None
    version: str = __version__

    @cached_property
    def content(self) -> dict[str, Any]:
        """Everything that a result depends on beside the model, as what JSON has; `from_content` reads it."""
        if self.do == PIN:
            return {"do": self.do, "version": self.version}
        scan = {key: value for key, value in vars(self.scan).items() if key not in ("use_cache", "layers")}
        layers = self.scan.layers and [[each.start, each.stop] for each in self.scan.layers]
        verify = None if self.verify is None else asdict(self.verify)
        return {"do": self.do, "version": self.version, "scan": {**scan, "layers": layers}, "verify": verify}

    @cached_property
    def key(self) -> str:
        """What names the job."""
        return _hash(self.content)

    @classmethod
    def from_content(cls, content: Mapping[str, Any], *, use_cache: bool = True) -> Job:
        """Return the job that has this content. Raises AnalyzerError, KeyError or TypeError where none has."""
        if content["do"] == PIN:
            return cls(PIN, version=content["version"])
        scan, verify = content["scan"], content["verify"]
        layers = scan["layers"] and tuple(range(*each) for each in scan["layers"])
        settings = None
        if verify is not None:
            chosen = {
                key: verify[key] for key in ("prompt", "text", "prompts", "early_stop", "tower", "device", "dtype")
            }
            settings = VerifySettings(**{**chosen, "prompts": verify["prompts"] and tuple(verify["prompts"])})
        return cls(
            content["do"],
            ScanSettings(**{**scan, "layers": layers, "use_cache": use_cache}),
            settings,
            content["version"],
        )


@dataclass(frozen=True, slots=True)
class Unit:
    """One job on one model at one commit.

    `name` is what open_model takes, of a model on the Hub with its commit; `model` and `revision` are what results
    call it. `state` tells a local folder's state, null for a commit. `needs` is how many bytes the job reads, 0 where
    nobody knows yet; it is no part of what makes a unit one.
    """

    do: str
    job: str
    name: str
    model: str
    revision: str | None = None
    commit: str | None = None
    state: str | None = None
    needs: int = 0

    @property
    def key(self) -> str:
        """What names the unit's files."""
        return _hash([self.do, self.job, self.name, self.commit, self.state])


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit failed: its class, one line, and how often it was tried."""

    kind: str
    line: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a unit that an engine was handed; small, since what was found is in the unit's file."""

    key: str
    state: str
    failure: Failure | None = None


def pin_unit(name: str) -> Unit:
    """Return the unit that finds out what a name of a list stands for."""
    return Unit(PIN, Job(PIN).key, name, name)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
