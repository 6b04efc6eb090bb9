"""The page of all experiments: what was found is in it, nothing of it runs or is loaded, and no folder is spoilt."""

import base64
import hashlib
import json
import re

import pytest
from site_pages import HOSTILE, read

from analyzer.base.errors import ForwardError, PlotError
from analyzer.base.records import Coordinate
from analyzer.experiments import bits, prune
from analyzer.experiments.lab.records import Claim, Cost, Measured, Outcome, Result, Weight
from analyzer.site.experiments import GENERATOR, Section, check_folder, render_page, section_of, write_page
from analyzer.site.experiments import write_section as write

NAMES = ("prune", "bits")
PROTOCOL = {
    "data": HOSTILE, "windows": 8, "length": 1024, "tokens": 8184, "bos": True, "dtype": "float32", "device": "cpu",
}  # fmt: skip


class Named:
    """What the page asks of a source."""

    model, revision, commit = HOSTILE, HOSTILE, None


def result(text="it matters"):
    arms = (
        Measured("original", 0, Cost(3.0, 0.0, 0.0, 0.0)),
        Measured(HOSTILE, 1, Cost(5.0, 2.0, 1.5, 2.5), facts={"of": "x"}),
    )
    claims = (Claim(text, True, "2 > 1"), Claim("it is rare", False, "1 < 2"), Claim("it is odd", None, HOSTILE))
    tables = ((HOSTILE, ("token", HOSTILE), ((HOSTILE, 3),)),)
    return Result(
        "prune", HOSTILE, HOSTILE, None, (Weight(Coordinate(2, None, 3, 4, HOSTILE), -1.5),), HOSTILE, PROTOCOL,
        Outcome(arms, (HOSTILE,), tables=tables, claims=claims), ({"what": "a", "value": HOSTILE, "source": "b"},),
        (HOSTILE,),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sections():
    return [section_of(prune.EXPERIMENT, result()), section_of(bits.EXPERIMENT, ForwardError(HOSTILE))]


@pytest.fixture(scope="module")
def page(sections):
    return read({"index.html": render_page(Named, sections).encode("utf-8")})


def test_it_is_self_contained_and_nothing_of_a_name_runs(sections, page):
    text = render_page(Named, sections)
    assert text == render_page(Named, sections)
    assert GENERATOR in text.encode("utf-8")[:4096]
    assert not list(page.all("script"))
    assert [image.attributes["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"]
    loading = [node for node in page.all() if node.tag in ("link", "iframe", "object", "embed", "form")]
    assert loading == []
    assert [a.attributes["href"] for a in page.all("a")] == ["https://arxiv.org/abs/2411.07191", *["#prune"] * 3]
    assert not [name for node in page.all() for name in node.attributes if name.startswith("on") or name == "style"]
    assert not set("\u202e\x1b\u200b") & set(text)
    (style,) = page.all("style")
    digest = base64.b64encode(hashlib.sha256(style.raw.encode("utf-8")).digest()).decode("ascii")
    policy = next(m for m in page.all("meta") if m.attributes.get("http-equiv")).attributes["content"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "url(" not in style.raw


def test_claims_come_first_and_each_section_has_its_figures(page):
    first, section, failed = page.all("section")
    said = [(p.attributes["class"].split()[1], next(p.all("b")).text) for p in first.all("p", **{"class": "verdict"})]
    assert said == [("holds", "holds"), ("fails", "does not hold"), ("open", "cannot be told")]
    assert [next(each.all("h2")).text for each in (section, failed)] == ["prune", "bits"]
    assert "The claim is that it matters: here that holds, since 2 > 1." in section.text
    assert [cell.text for cell in section.all("td")][2:5] == ["3.0000", "20.09", "+0.0000 ±0.0000"]
    assert "Published of this model, by others" in section.text
    assert "8 windows of 1,024 tokens" in section.text
    assert failed.text.startswith("bits")
    assert "This experiment failed: <script>" in failed.text


def test_what_did_not_run_yet_is_said():
    text = read({"index.html": render_page(Named, [Section(bits.EXPERIMENT, None)]).encode("utf-8")}).text
    assert "This experiment did not run yet." in text


def test_a_folder_is_new_empty_or_of_an_earlier_run(tmp_path, sections):
    folder = tmp_path / "a" / "b"
    check_folder(folder, NAMES)
    for section in sections:
        write(section, folder)
    write_page(Named, sections, folder)
    assert {path.name for path in folder.iterdir()} == {"index.html", "prune.json", "prune.png"}
    document = json.loads((folder / "prune.json").read_text())
    assert [claim["holds"] for claim in document["claims"]] == [True, False, None]
    assert (folder / "prune.png").read_bytes() == sections[0].picture
    assert base64.b64encode(sections[0].picture).decode("ascii") in (folder / "index.html").read_text()
    check_folder(folder, NAMES)
    write(Section(prune.EXPERIMENT, ForwardError("no")), folder)
    assert {path.name for path in folder.iterdir()} == {"index.html"}


@pytest.mark.parametrize(("name", "content"), [("notes.txt", "mine"), ("index.html", "<p>mine"), ("scale.json", "{}")])
def test_a_folder_of_something_else_is_left_alone(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(PlotError, match=rf"{re.escape(name)} in it is of no earlier run"):
        check_folder(tmp_path, NAMES)
    assert (tmp_path / name).read_text() == content


def test_what_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlotError, match="cannot write into"):
        check_folder(tmp_path / "file" / "in", NAMES)
    with pytest.raises(PlotError, match="cannot write into"):
        check_folder(tmp_path / "file", NAMES)
