"""The guide's pages: short where they say so, every link leads somewhere, every file is named, versions agree."""

import re
import tomllib

import pytest
import yaml
from guide import FOLDERS, rooms
from guide_pages import PAGES, ROOT, blocks, inline, inline_code, tokens_of

from analyzer import __version__
from analyzer.cli.experiment import EXPERIMENTS
from analyzer.verify.costs.effects import EFFECT_PARAMETERS
from analyzer.verify.settings import Thresholds

DESIGN = (ROOT / "docs" / "design.md").read_text("utf-8")


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def anchors(page):
    """Return the anchors that a page's headings get, on GitHub and in the site alike."""
    tokens = tokens_of(page)
    titles = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    targets = [token.attrs["href"] for token in inline(page, "link_open")]
    targets += [token.attrs["src"] for token in inline(page, "image")]
    for target in targets:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    """Paths from a folder of the tree, but for placeholders, which are in capitals; and the targets of make."""
    words = [word for text in inline_code(page) for word in text.split()]
    paths = [word for word in words if re.fullmatch(rf"({'|'.join(FOLDERS)})/[a-z0-9_./-]+", word)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text("utf-8")
    commands = [*inline_code(page), *(line for block in blocks(page) for line in block.text.splitlines())]
    targets = [found[1] for command in commands if (found := re.match(r"\s*make ([a-z]+)", command))]
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_every_constant_that_contributing_names_is_in_a_file_named_beside_it():
    for token in tokens_of(ROOT / "CONTRIBUTING.md"):
        code = [child.content for child in token.children or () if child.type == "code_inline"]
        files = "".join((ROOT / path).read_text("utf-8") for path in code if (ROOT / path).is_file())
        constants = [name for name in code if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)]
        assert [name for name in constants if not re.search(rf"\b{name}\b", files)] == []


def chapter_of(folder):
    """Return the part of the design's page where a folder's files are named."""
    start = f"### {folder.name}\n" if folder.parent == ROOT / "analyzer" else f"In `{folder.relative_to(ROOT)}/`:\n"
    if folder == ROOT / "analyzer":
        start = "## Beside the rooms\n"
    assert start in DESIGN, f"{folder} has no chapter: make guide"
    return re.split(r"\n#|\nIn `|<!-- \[\[\[end", DESIGN.split(start)[1])[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_named_in_the_design(folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
    assert files
    missing = [
        path for path in files if path.name != "__init__.py" and f"| `{path.name}` |" not in chapter_of(path.parent)
    ]
    assert missing == []


def test_every_file_of_the_top_is_named_in_the_design():
    files = [path.name for path in ROOT.iterdir() if path.is_file()]
    top = DESIGN.split("At the top:\n")[1]
    assert [name for name in files if not name.startswith(".") and f"| `{name}` |" not in top] == []
    assert "| `.ci/run` |" in top


def test_the_rooms_are_those_of_the_package():
    assert sorted(rooms()) == sorted(path.parent.name for path in (ROOT / "analyzer").glob("*/__init__.py"))


def test_the_parameters_of_a_decision_are_those_of_the_code():
    method = " ".join((ROOT / "docs" / "method.md").read_text("utf-8").split())
    entries = (ROOT / "catalog" / "smollm2.json").read_text("utf-8")
    rounds = int(re.search(r'"max_rounds": (\d+)', entries)[1])
    parameters = {**vars(Thresholds()), **EFFECT_PARAMETERS, "max_rounds": rounds}
    assert [f"`{name}` {value:g}" for name, value in parameters.items() if f"`{name}` {value:g}" not in method] == []


def test_every_experiment_has_a_page_that_the_overview_leads_to():
    overview = (ROOT / "docs" / "experiments.md").read_text("utf-8")
    for experiment in EXPERIMENTS:
        assert (ROOT / "docs" / "experiments" / f"{experiment.name}.md").exists()
        assert f"](experiments/{experiment.name}.md)" in overview


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == project["version"] == __version__
    assert citation["license"] == project["license"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
