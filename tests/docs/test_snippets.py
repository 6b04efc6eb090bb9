"""The Python in the guide runs, each page from its top to its end, on tiny models."""

import shutil

import pytest
from guide_pages import PAGES, ROOT, blocks
from models import TEXT, plant, random_llama, save

PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.fixture
def models(hub, tmp_path, monkeypatch):
    """What the pages speak of: a model on the Hub, folders before and after, a text, a catalog."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("before", 2.0), ("after", 1.5)):
        save(plant(random_llama(), value=value), tmp_path / name)
        tokenizer = tmp_path / name / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text().replace('"apple"', '"Apple"'))  # how the paper's prompt begins
    hub.add("HuggingFaceTB/SmolLM2-135M", tmp_path / "before")
    (tmp_path / "text.txt").write_text(TEXT.replace("apple", "Apple"))
    shutil.copytree(ROOT / "catalog", tmp_path / "catalog")


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
@pytest.mark.usefixtures("models")
def test_the_snippets_of_a_page_run(page, capsys):
    names = {}
    for block in blocks(page):
        if block.language == "python":
            code = "\n" * block.line + block.text  # so that a traceback names the page's own line
            exec(compile(code, str(page), "exec"), names)
    assert capsys.readouterr().out


def test_the_library_has_a_page():
    assert ROOT / "docs" / "python.md" in PYTHON
