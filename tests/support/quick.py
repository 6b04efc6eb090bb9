"""Tells which test files need torch or the network: `pytest --quick` leaves them out.

It is told from what a file imports, wherever in it, and what that imports in turn: of tests/support and tools/ all, of
analyzer/ what is imported with it. A file whose tests ask for a fixture of a conftest.py needs what that fixture needs.
"""

import ast
from functools import cache
from pathlib import Path

from imports import files_of, imported_file, imports_in, imports_of, parsed

TESTS = Path(__file__).parents[1]
SLOW = frozenset({"torch", "http.server", "socket"})


def test_files(tests=TESTS):
    return sorted(tests.rglob("test_*.py"))


@cache
def slow_files(tests=TESTS):
    """Return the test files that need torch or the network."""
    folders = (tests / "support", tests.parent / "tools")
    support = {path.stem: path for folder in folders for path in folder.glob("*.py")}
    files = {**support, **files_of(tests.parent / "analyzer")}
    return [path for path in test_files(tests) if not SLOW.isdisjoint(_reached(path, files, _fixtures(tests, path)))]


def _fixtures(tests, path):
    """Return the functions, by name, of the conftest.py that a test file finds its fixtures in."""
    places = (tests / "conftest.py", path.parent / "conftest.py")
    return {name: function for place in places if place.exists() for name, function in _functions(place).items()}


def _reached(path, files, fixtures):
    """Return the modules that a test file imports, itself or through these files and fixtures."""
    todo, reached = [*imports_of(path), *_imports_of_fixtures(path, fixtures)], set()
    while todo:
        each = todo.pop()
        name = imported_file(files, each)
        if name is None:
            reached |= {each.module, each.top}
        elif name not in reached:
            reached.add(name)
            ours = name.startswith("analyzer")
            todo += [inner for inner in imports_of(files[name]) if not (ours and inner.later)]
    return reached


def _imports_of_fixtures(path, fixtures):
    """Return what the fixtures import that a file's functions take as arguments."""
    todo, known = list(_functions(path).values()), set()
    while todo:
        names = {argument.arg for argument in todo.pop().args.args} & fixtures.keys() - known
        known |= names
        todo += [fixtures[name] for name in names]
    return [each for name in known for each in imports_in(fixtures[name])]


def _functions(path):
    return {node.name: node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)}
