"""The guide as its tests read it: every page, its blocks of code, its inline code, its links."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for part in ("docs", "integrations") for page in (ROOT / part).rglob("*.md"))]
)


@dataclass(frozen=True)
class Block:
    """A block of code: its language, empty where none is named, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


@cache
def tokens_of(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def blocks(page):
    return [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in tokens_of(page)
        if token.type in ("fence", "code_block")
    ]


def inline(page, kind):
    """Return the inline tokens of a kind, such as code_inline or link_open."""
    return [child for token in tokens_of(page) for child in token.children or () if child.type == kind]


def inline_code(page):
    return [token.content for token in inline(page, "code_inline")]


def consoles(page):
    """Return (command, what it printed) of each command that a block of the page shows with its output."""
    found = []
    for block in blocks(page):
        for line in block.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            elif block.text.startswith("$ "):
                found[-1][1].append(line)
    return [(command, "\n".join(lines)) for command, lines in found]
