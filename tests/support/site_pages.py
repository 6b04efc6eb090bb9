"""What the tests of the catalog's page share: the real catalog as plain JSON, hostile ones, a reader of pages."""

import json
from html.parser import HTMLParser
from pathlib import Path

import catalogs
from catalogs import METHOD
from catalogs import REPORTED as ITEM

ROOT = Path(__file__).parents[2]
FILES = [json.loads(p.read_text("utf-8")) for p in sorted((ROOT / "catalog").glob("*.json")) if p.name != "schema.json"]
REPORTED = [(file["family"], item) for file in FILES for item in file["reported"]]
ENTRIES = [(file["family"], entry) for file in FILES for entry in file["entries"]]
NAMES = {item["model"] for _, item in (*REPORTED, *ENTRIES)}
VOID = {"meta", "link", "input", "br", "img"}

HOSTILE = (
    "<script>window.pwned=1</script>\"'><img src=x onerror=window.pwned=1>&amp;{{ 7 * 7 }}\u202ecod.exe\x1b[31m\u200b"
)

ACTIVATION = {
    "layer": 1, "channel": 2, "position": 0, "token": "A", "value": 9.0, "median_ratio": 200.0, "last_layer": 3,
}  # fmt: skip


def entry(**changes):
    return catalogs.entry(**{"super_activations": [ACTIVATION], **changes})


def documents(*, entries=(), reported=()):
    return {"model": {"schema_version": 3, "family": "model", "entries": list(entries), "reported": list(reported)}}


def hostile():
    sources = [
        {"name": HOSTILE, "kind": "code", "url": "javascript:window.pwned=1", "note": HOSTILE},
        {"name": "b", "kind": "code", "url": "https://u:p@[::1", "note": None},
        {"name": "c", "kind": "code", "url": 'https://example.org/"onclick="window.pwned=1', "note": None},
    ]
    items = [
        {**ITEM, "model": HOSTILE, "revision": HOSTILE, "standing": "disputed", "reason": HOSTILE, "sources": sources},
        {**ITEM, "model": f"-{HOSTILE}"},
    ]
    method = {**METHOD, "tool": HOSTILE, "prompt": HOSTILE, HOSTILE: HOSTILE}
    activations = [{**ACTIVATION, "token": HOSTILE}]
    analysis = entry(model=HOSTILE, note=HOSTILE, method=method, super_activations=activations)
    return documents(entries=[analysis], reported=items)


class Node:
    """An element of a page: its attributes, and what is in it in order."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.inside = tag, attributes, []

    @property
    def text(self):
        return " ".join("".join(part if isinstance(part, str) else part.raw for part in self.inside).split())

    @property
    def raw(self):
        return "".join(part if isinstance(part, str) else part.raw for part in self.inside)

    def all(self, tag=None, **attributes):
        for part in self.inside:
            if isinstance(part, Node):
                fits = all(value in part.attributes.get(key, "").split() for key, value in attributes.items())
                if fits and tag in (None, part.tag):
                    yield part
                yield from part.all(tag, **attributes)


class Reader(HTMLParser):
    """Reads a page with a parser that shares nothing with what wrote it."""

    def __init__(self):
        super().__init__()
        self.path = [Node("page", {})]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.path[-1].inside.append(node)
        if tag not in VOID:
            self.path.append(node)

    def handle_startendtag(self, tag, attrs):
        self.path[-1].inside.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.path[-1].tag == tag, f"{tag} ends inside {self.path[-1].tag}"
        self.path.pop()

    def handle_data(self, data):
        self.path[-1].inside.append(data)


def read(files):
    reader = Reader()
    reader.feed(files["index.html"].decode("utf-8"))
    (page,) = reader.path  # all that was opened is closed
    return page


def rows(section, caption):
    """Return the rows of a table as dictionaries; a number is the exact one that stands behind what is shown."""
    table = next(t for t in section.all("table") if next(t.all("caption")).text == caption)
    header = [cell.text for cell in table.all("th")]
    return [
        {
            name: next((data.attributes["value"] for data in cell.all("data")), cell.text)
            for name, cell in zip(header, row.all("td"), strict=True)
        }
        for row in list(table.all("tr"))[1:]
    ]
