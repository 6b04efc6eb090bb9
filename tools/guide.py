"""What the guide has from the code itself: a line for every file, the order of the rooms, every command's help.

cog puts it into the pages of docs/: `make guide` writes them anew, and `make test` fails where one is out of date.
"""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from analyzer.cli.main import cli

ROOT = Path(__file__).parents[1]
FOLDERS = ("analyzer", "catalog", "docs", "integrations", "tests", "tools")
WIDTH = 100  # of help
SHOWN_MODELS = 3


def rooms() -> dict[str, list[str]]:
    """Return the rooms of analyzer/ in their order, each with those that it imports."""
    return _table("rooms.toml")


def arrows() -> str:
    """Return the rooms and what each imports as a table."""
    return markdown(("room", "imports"), [(f"`{room}`", ", ".join(others) or "-") for room, others in rooms().items()])


def rooms_and_files() -> str:
    """Return a chapter a room, in their order: what it is for, and a line for each of its files."""
    chapters = []
    for room in rooms():
        folder = Path("analyzer", room)
        below = [parent for parent in _parents() if folder in parent.parents]
        said = f"### {room}\n\n{_said_by(ROOT / folder / '__init__.py')}.\n\n{files_of(folder)}"
        chapters.append("\n".join([said, *map(_headed, below)]))
    return "\n".join(chapters)


def files_below(*folders: str) -> str:
    """Return a line for each file of these folders, a table for each folder in them."""
    return "\n".join(_headed(parent) for folder in folders for parent in _parents() if parent.is_relative_to(folder))


def files_of(folder: Path | str) -> str:
    """Return a line for each file that lies in a folder, as a table."""
    here = [Path(name) for name in files() if Path(name).parent == Path(folder)]
    return markdown(("file", "holds"), [(f"`{path.name}`", line_of(str(path))) for path in here])


def top_files() -> str:
    """Return a line for each file of the top level, as a table."""
    return markdown(("file", "holds"), [(f"`{name}`", line_of(name)) for name in _top()])


def commands() -> str:
    """Return every command with its help, in the order of the command line."""
    top = click.Context(
        cli,
        info_name="superweight",
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return "\n".join(
        f"### {context.command_path}\n\n```text\n{context.get_help()}\n```\n" for context in _contexts(top)
    )


def files() -> list[str]:
    """Return every file of the folders that design.md has to name; what is said of a room is its `__init__`'s line."""
    inside = (path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    hidden = (".", "__pycache__", "__init__")
    return sorted(str(path) for path in inside if not any(part.startswith(hidden) for part in path.parts))


def line_of(name: str) -> str:
    """Return what a file is for, in a line: its docstring's first, its title, or its line in files.toml."""
    path, known = ROOT / name, _table("files.toml")
    if name in known:
        return str(known[name])
    if path.suffix == ".py":
        return _said_by(path)
    if path.suffix == ".md":
        return path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    if path.parent == ROOT / "catalog":
        return _models_of(path)
    raise SystemExit(f"docs/files.toml has no line for {name}: add one")


def _headed(folder: Path) -> str:
    return f"In `{folder}/`:\n\n{files_of(folder)}"


def _parents() -> list[Path]:
    return sorted({Path(name).parent for name in files()})


def _top() -> list[str]:
    return [name for name in _table("files.toml") if name.partition("/")[0] not in FOLDERS]


def _said_by(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    if not said:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring that says in a line what it is for: add one")
    return said.partition("\n")[0].rstrip(".")


def _models_of(path: Path) -> str:
    document = json.loads(path.read_text("utf-8"))
    ours = [entry["model"] for entry in document["entries"]]
    others = [item["model"] for item in document["reported"]]
    names = list(dict.fromkeys([*ours, *others]))
    more = f" and {len(names) - SHOWN_MODELS} more" if names[SHOWN_MODELS:] else ""
    who = " and ".join([*(["our own analysis"] if ours else []), *(["what others report"] if others else [])])
    return f"{who}: {', '.join(name.rpartition('/')[2] for name in names[:SHOWN_MODELS])}{more}"


def _contexts(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name, command in context.command.commands.items():
            yield from _contexts(click.Context(command, parent=context, info_name=name))


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "docs" / name).read_text("utf-8"))


def markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
