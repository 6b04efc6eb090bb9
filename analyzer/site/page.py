"""The catalog -> a static page that needs nothing else: one HTML file, readable without its script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.base.atomic import write_whole
from analyzer.base.errors import CatalogError, shown
from analyzer.catalog.documents import Document, increase_of, place_of
from analyzer.catalog.files import read_documents
from analyzer.site.panels import KINDS, MEANINGS, panels_of

if TYPE_CHECKING:
    from jinja2 import Environment


PAGE, README = "index.html", "README.md"
GENERATOR = b'<meta name="generator" content="superweight-analyzer">'  # by which a page of ours is known
GENERATOR_WITHIN = 4096  # bytes from the start of the page
MAX_TEXT = 100_000  # characters of one text of the catalog: none is cut that passes its schema
STRIP = 120  # width of a model's small drawing, in its own units

SPACE_README = b"""\
---
title: Super weight catalog
emoji: \xf0\x9f\x94\x8e
colorFrom: red
colorTo: gray
sdk: static
app_file: index.html
pinned: false
license: apache-2.0
---

Which single weights of large language models carry their ability to write text: coordinates, evidence and sources.
`index.html` is the whole page. It was written by `superweight catalog site`, which writes it again from the catalog.
"""


def read_what_to_show(folder: Path) -> dict[str, Document]:
    """Return the catalog's content by family. Raises CatalogError where it has no files, and like read_documents."""
    documents = read_documents(folder)
    if not documents:
        raise CatalogError(f"the catalog {shown(folder)} has no files: there is nothing to make a page of")
    return documents


def render_site(documents: Mapping[str, Document]) -> dict[str, bytes]:
    """Return the files of the page by name, the same bytes for the same catalog; `documents` are validated ones."""
    environment = environment_of_pages()
    panels = panels_of(documents)
    style, script = data_of("page.css"), data_of("page.js")
    page = environment.get_template("page.html.jinja").render(
        panels=panels,
        families=sorted({panel.family for panel in panels}),
        layers=sorted({layer for panel in panels for layer in panel.layers}),
        used_kinds=[kind for kind in KINDS if any(kind == other for panel in panels for other, _ in panel.at)],
        kinds=KINDS,
        meanings=MEANINGS,
        totals=Counter(kind for panel in panels for kind, _ in panel.known),
        strip_layers=max([panel.depth or 0 for panel in panels] + [n + 1 for p in panels for n in p.layers], default=1),
        strip=STRIP,
        style=literal(style),
        script=literal(script),
        policy=policy_of(style=style, script=script),
    )
    return {PAGE: page.encode("utf-8"), README: SPACE_README}


def write_site(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Write the page's files into a folder, each atomically, and return those that it has written or that say the same.

    What else is in the folder stays, a README of its own too. Raises CatalogError where the folder has an index.html
    that is not one of ours, or cannot be written; the page that was there is then as it was.
    """
    path = folder / PAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (path.exists() or path.is_symlink()) and not _is_ours(path):
            raise CatalogError(f"{shown(path)} is not a page that this tool wrote: give another folder, or move it")
        written = []
        for name, data in sorted(files.items()):  # the README first: a page is whole when it is there
            path = folder / name
            if name == README and (path.exists() or path.is_symlink()) and not _holds(path, data):
                continue
            write_whole(path, data)
            written.append(path)
    except FileExistsError as error:
        raise CatalogError(f"{shown(folder)} is a file: give a folder for the page") from error
    except OSError as error:
        raise CatalogError(f"cannot write {shown(path)}: {error.strerror}; what was there is unchanged") from error
    return written


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return GENERATOR in file.read(GENERATOR_WITHIN)


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def environment_of_pages() -> Environment:
    """Return what makes pages of the templates of this folder; whatever they print is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(data_of),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_visible,
    )
    environment.filters.update(
        signed=lambda value: f"{value:+.5g}", change=_change, increase=increase_of, place=place_of, short=_short
    )
    return environment


def _visible(value: Any) -> Any:
    """Return what a template prints: text of the catalog without characters that are invisible or turn it around."""
    return shown(value, MAX_TEXT) if type(value) is str else value


def literal(text: str) -> Any:
    """Return text of our own that goes into a page as it is."""
    from markupsafe import Markup

    return Markup(text)


def data_of(name: str) -> str:
    """Return a file of this folder."""
    return resources.files("analyzer.site").joinpath(name).read_text("utf-8")


def policy_of(*, style: str, script: str | None) -> str:
    """Return a Content-Security-Policy by which this style and script are all that the page can run or load."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"

    scripts = "" if script is None else f"script-src {digest(script)}; "
    return f"default-src 'none'; style-src {digest(style)}; {scripts}img-src data:; base-uri 'none'; form-action 'none'"


def _short(commit: str) -> str:
    """Return a commit or hash in 12 digits, anything else as it is."""
    kind, _, digits = commit.rpartition(":")
    return f"{kind}{':' if kind else ''}{digits[:12]}" if re.fullmatch(r"[0-9a-f]{40,}", digits) else commit


def _change(value: float) -> str:
    return f"{round(value, 3) + 0.0:+,.3f}"  # + 0.0: never "-0.000"
