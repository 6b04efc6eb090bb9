"""How Sphinx builds the guide's site, from these pages and those of the top level: `make docs`."""

from __future__ import annotations

import re
from typing import Any

from analyzer import __version__

project = "Super weight analyzer"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/*/*.md", "integrations/*/*.md"]
exclude_patterns = [".*", "analyzer", "build", "catalog", "tests", "tools"]
html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True


def setup(app: Any) -> None:
    """Read docstrings as the plain text that they are, and leave out those that Python makes for a tuple's fields."""
    app.connect("autodoc-process-docstring", _as_plain_text)
    app.connect("autodoc-skip-member", _skipped)


def _skipped(_app: Any, _what: str, _name: str, thing: Any, _skip: bool, _options: Any) -> bool | None:
    return (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") or None


def _as_plain_text(_app: Any, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    """Have code in backticks be code, and bars and stars themselves: Sphinx would read them as its own markup."""
    for place, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"`([^`]*)`", line)
            parts[::2] = (re.sub(r"([|*])", r"\\\1", part) for part in parts[::2])
            parts[1::2] = (f"``{part}``" for part in parts[1::2])
            lines[place] = "".join(parts)
