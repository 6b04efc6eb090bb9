"""What is imported is declared in pyproject.toml, and what is declared is needed."""

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from imports import imports_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RUNTIME = PROJECT["dependencies"]
OPTIONAL = PROJECT["optional-dependencies"]
DEV, EXTRAS = OPTIONAL["dev"], [*OPTIONAL["tasks"], *OPTIONAL["ray"]]
MAKERS = ("tests", "tools", "integrations")
OURS = {"analyzer", *(path.stem for folder in MAKERS for path in (ROOT / folder).rglob("*.py"))}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


@cache
def imported(*folders):
    """Return the distributions that the files of these folders import, each with a place where."""
    found = {}
    distributions = packages_distributions()
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for each in imports_of(path):
            if each.top not in OURS | sys.stdlib_module_names:
                (name,) = {normal(each) for each in distributions.get(each.top, [each.top])}
                found.setdefault(name, f"{path.relative_to(ROOT)}:{each.line}")
    return found


def test_all_that_the_tool_imports_is_declared():
    assert {name: where for name, where in imported("analyzer").items() if name not in names(RUNTIME + EXTRAS)} == {}


def test_all_that_the_tool_declares_is_imported():
    assert names(RUNTIME + EXTRAS) - imported("analyzer").keys() == set()


def test_all_that_its_makers_import_is_declared():
    assert {name: at for name, at in imported(*MAKERS).items() if name not in names(RUNTIME + DEV + EXTRAS)} == {}
    assert names(RUNTIME) & names(DEV) == set()


@pytest.mark.parametrize("requirement", [*RUNTIME, *DEV, *EXTRAS])
def test_every_dependency_has_a_lower_bound(requirement):
    """`make lowest` runs the tests with them."""
    assert re.fullmatch(r"[\w.-]+>=\d+(\.\d+)+", requirement)
