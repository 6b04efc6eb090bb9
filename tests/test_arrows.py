"""Arrows between the rooms of analyzer/ go one way, in the order of docs/rooms.toml, and no files import each other."""

import tomllib
from pathlib import Path

import pytest
from arrows import faults, rooms_of

ROOT = Path(__file__).parents[1]
MOST_FILES, MOST_LINES = 9, 400
ORDER = tomllib.loads((ROOT / "docs" / "rooms.toml").read_text("utf-8"))


def test_arrows_go_one_way():
    assert faults(ROOT / "analyzer", ORDER) == []


def test_every_room_is_in_the_package_list():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "analyzer").rglob("*.py")}
    assert setuptools["packages"] == sorted([*(".".join(folder.parts) for folder in folders), "analyzer.record"])
    assert setuptools["package-dir"] == {"analyzer.record": "catalog"}


def test_rooms_and_files_are_small():
    folders = [path.parent for path in (ROOT / "analyzer").rglob("__init__.py")]
    files = {folder: [path for path in folder.glob("*.py") if path.name[0] != "_"] for folder in folders}
    assert [folder.name for folder, inside in files.items() if len(inside) > MOST_FILES] == []
    lines = {path.name: len(path.read_text("utf-8").splitlines()) for inside in files.values() for path in inside}
    assert [name for name, count in lines.items() if count > MOST_LINES] == []


HOUSE = {
    "__init__.py": "from house.hall.door import key\n__version__ = '1'\n",
    "__main__.py": "def main():\n    from house.cli.main import cli\n",
    "cellar/__init__.py": "",
    "cellar/coal.py": "import math\n",
    "cellar/stove.py": "from house.cellar import coal\nfrom house import __version__\n",
    "hall/__init__.py": "",
    "hall/door.py": "import house.cellar.stove as stove\n",
    "cli/__init__.py": "",
    "cli/main.py": "from house.hall import door\n",
}
HOUSE_ORDER = {"cellar": [], "hall": ["cellar"], "cli": ["hall"]}


def build(folder, **changed):
    for name, text in {**HOUSE, **changed}.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "house"


def test_a_house_in_order_has_no_faults(tmp_path):
    house = build(tmp_path)
    assert rooms_of(house) == ["cellar", "cli", "hall"]
    assert faults(house, HOUSE_ORDER) == []


FAULTS = {
    "an arrow back": (
        {"cellar/coal.py": "from house.hall import door\n"},
        ["cellar/coal.py:1 imports house.hall.door: cellar may not import hall", "a cycle of files: "],
    ),
    "an arrow back to a folder": (
        {"cellar/coal.py": "from house import hall\n"},
        ["cellar/coal.py:1 imports house.hall: cellar may not import hall"],
    ),
    "an arrow back inside a function": (
        {"cellar/coal.py": "def burn():\n    if cold:\n        from house.hall.door import key\n"},
        ["cellar/coal.py:3 imports house.hall.door: cellar may not import hall", "a cycle of files: "],
    ),
    "an arrow back for types alone": (
        {"cellar/coal.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.cli.main import cli\n"},
        ["cellar/coal.py:3 imports house.cli.main: cellar may not import cli", "a cycle of files: "],
    ),
    "an arrow that nobody allowed": (
        {"cli/main.py": "from house.hall import door\nfrom house.cellar import coal\n"},
        ["cli/main.py:2 imports house.cellar.coal: cli may not import cellar"],
    ),
    "an arrow that nobody uses": ({"cli/main.py": ""}, ["the order has cli import hall, which it does not"]),
    "a cycle of files in a room": (
        {"cellar/coal.py": "def burn():\n    from house.cellar.stove import door\n"},
        ["a cycle of files: house.cellar.coal <- house.cellar.stove <- house.cellar.coal"],
    ),
    "the library in a room": (
        {"cli/main.py": "from house.hall import door\nfrom house import key\n"},
        ["cli/main.py:2 imports house: it stands above the rooms"],
    ),
    "the package by one of its files": (
        {"hall/door.py": "import math\nimport house.cellar.stove\n"},
        ["hall/door.py:2 imports the package with house.cellar.stove: write `from … import`"],
    ),
    "an import that is called": (
        {"hall/door.py": "from house.cellar import stove\nimportlib.import_module('house.cli.main')\n"},
        ["hall/door.py:2 calls import_module: write the import"],
    ),
    "an import that is called by its name": (
        {"hall/door.py": "from house.cellar import stove\nfrom importlib import import_module as load\n"},
        ["hall/door.py:2 calls import_module: write the import"],
    ),
    "an import that a builtin is asked for": (
        {"hall/door.py": "from house.cellar import stove\n\ndef open():\n    __import__('house.cli.main')\n"},
        ["hall/door.py:4 calls __import__: write the import"],
    ),
    "the command line in the library": (
        {"__init__.py": "def run():\n    import house.cli.main\n"},
        ["__init__.py imports house.cli.main: only __main__.py may"],
    ),
    "a room that nobody named": (
        {"attic/__init__.py": ""},
        ["attic is a room, or has a place in the order, but not both"],
    ),
}


@pytest.mark.parametrize(("changed", "expected"), FAULTS.values(), ids=FAULTS)
def test_the_checker_sees(tmp_path, changed, expected):
    found = faults(build(tmp_path, **changed), HOUSE_ORDER)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_the_checker_sees_an_order_that_goes_back(tmp_path):
    order = {"hall": ["cellar"], "cellar": [], "cli": ["hall", "attic"]}
    assert faults(build(tmp_path), order) == [
        "the order has hall import cellar: that arrow goes back",
        "the order has cli import attic: that arrow goes back",
    ]


def test_a_relative_import_is_refused(tmp_path):
    house = build(tmp_path, **{"hall/door.py": "from ..cellar import stove\n"})
    with pytest.raises(AssertionError, match=r"door\.py:1: write a relative import in full"):
        faults(house, HOUSE_ORDER)
