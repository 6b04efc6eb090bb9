"""The catalog's page: all of the catalog is in it, in its place, and nothing of it runs."""

import base64
import hashlib
import re
import shlex

import pytest
from catalogs import REPORTED as ITEM
from catalogs import WEIGHT
from site_pages import ACTIVATION, ENTRIES, HOSTILE, NAMES, REPORTED, ROOT, documents, entry, hostile, read, rows

from analyzer.base.errors import shown
from analyzer.catalog.files import read_documents
from analyzer.site.drawing import Sizes, draw
from analyzer.site.page import render_site


@pytest.fixture(scope="module")
def site():
    return render_site(read_documents(ROOT / "catalog"))


@pytest.fixture(scope="module")
def articles(site):
    found = {next(article.all("h3")).text: article for article in read(site).all("article")}
    assert set(found) == NAMES
    return found


def test_all_that_others_report_is_there_and_apart(articles):
    for family, item in REPORTED:
        article = articles[item["model"]]
        assert article.attributes["data-family"] == family
        (section,) = article.all("section", **{"class": "others"})
        assert next(section.all("h4")).text == "Reported by others, not verified here"
        assert (item["reason"] or "") in section.text
        for source in item["sources"]:
            assert any(a.attributes["href"] == source["url"] and a.text == source["name"] for a in section.all("a"))
            assert " ".join((source["note"] or "").split()) in section.text
            assert source["name"] in article.attributes["data-search"]
        if item["layer"] is None:
            assert item["standing"] == "none_reported"
            continue
        expected = {
            "layer": str(item["layer"]),
            "row": str(item["row"]),
            "col": "whole row" if item["col"] is None else str(item["col"]),
            "value": "-" if item["value"] is None else repr(item["value"]),
            "standing": item["standing"],
            "revision": item["revision"] or "-",
            "sources": "; ".join(source["name"] for source in item["sources"]),
        }
        if any(other["expert"] is not None for _, other in REPORTED if other["model"] == item["model"]):
            expected["expert"] = "-" if item["expert"] is None else str(item["expert"])
        assert expected in rows(section, "Coordinates as published")


def test_all_that_this_tool_found_is_there_and_apart(articles):
    assert ENTRIES
    for _, known in ENTRIES:
        (section,) = articles[known["model"]].all("section", **{"class": "verified"})
        table = rows(section, "Weights on the super activations’ channels")
        assert len(table) == len(known["super_weights"])
        for weight in known["super_weights"]:
            place = {axis: str(weight[axis]) for axis in ("layer", "row", "col")}
            (row,) = [row for row in table if place.items() <= row.items()]
            assert (row["value"], row["status"], row["effect"]) == (
                repr(weight["value"]), weight["status"], weight["effect"],
            )  # fmt: skip
            assert float(row["Δ loss"]) == pytest.approx(weight["loss_zeroed"] - weight["loss"], abs=1e-9)
            worst = weight["control_loss_max"]
            assert (row["worst control"] == "-") is (worst is None)
            if worst is not None:
                assert float(row["worst control"]) == pytest.approx(worst - weight["loss"], abs=1e-9)
            assert row["rank"] == f"{weight['static_rank']:,}"
            assert row["share"] == f"{weight['share']:.0%}"
        assert (table[0]["layer"], table[0]["row"], table[0]["col"]) == ("11", "507", "1229")  # the worst comes first
        for status in ("confirmed", "coincident"):
            increases = [float(row["Δ loss"]) for row in table if row["status"] == status]
            assert increases == sorted(increases, reverse=True)
        statuses = [row["status"] for row in table]
        assert statuses == sorted(statuses, key=lambda status: status != "confirmed")
        assert "loss, which is 2.8884 over 1,881 tokens; it is over as many of them, from 192 on, as" in section.text
        joint = (
            "28 weights zeroed at once the loss is 4.0353, from 2.8884, over 1,881 tokens. Zeroing 11,507,1229 alone"
        )
        assert joint in section.text
        for text in (known["commit"], known["note"], known["method"]["prompt"], known["method"]["text_sha256"]):
            assert text in section.text
        drawn = [node for node in section.all("path", **{"class": "extent"}) if list(node.all("title"))]
        assert len(drawn) == len(known["super_activations"])


def test_every_coordinate_is_drawn_and_described_where_that_says_something(articles):
    layers = {}
    for _, item in REPORTED:
        layers.setdefault(item["model"], set()).add(item["layer"])
    assert {True, False} == {len(found) < 3 for found in layers.values()}
    for _, item in REPORTED:
        if len(layers[item["model"]]) < 3:  # and the network's depth is not known: the table says it all
            assert not list(articles[item["model"]].all("svg", role="img"))
            continue
        (picture,) = articles[item["model"]].all("svg", role="img")
        col = "any" if item["col"] is None else item["col"]
        place = ",".join(str(n) for n in (item["layer"], item["expert"], item["row"], col) if n is not None)
        assert any(title.text.startswith(f"{place}, ") for title in picture.all("title"))
        title, desc = (next(picture.all(tag)).attributes["id"] for tag in ("title", "desc"))
        assert picture.attributes["aria-labelledby"] == f"{title} {desc}"


def test_the_totals_are_the_catalogs(site):
    (totals,) = read(site).all("dl", **{"class": "totals"})
    confirmed = sum(w["status"] == "confirmed" for _, e in ENTRIES for w in e["super_weights"])
    critical = sum(w["effect"] == "critical" for _, e in ENTRIES for w in e["super_weights"])
    standing = [item["standing"] for _, item in REPORTED]
    assert totals.text == (
        f"models{len(NAMES)} verified super weights, {critical} critical{confirmed} "
        f"reported by others{standing.count('reported')} disputed{standing.count('disputed')}"
    )


def test_ids_are_unique_and_names_of_form_fields_are_there(site):
    page = read(site)
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in page.all():
        for key in ("aria-labelledby", "aria-describedby"):
            assert set(node.attributes.get(key, "").split()) <= set(ids)
    for field in (*page.all("input"), *page.all("select")):
        assert any(field in list(label.all()) for label in page.all("label"))


def test_the_same_catalog_is_the_same_page_whatever_its_order(site):
    given = read_documents(ROOT / "catalog")
    assert render_site(dict(reversed(given.items()))) == site
    assert render_site(given) == site


def test_the_policy_lets_this_script_and_style_through_and_nothing_else(site):
    page = read(site)
    (policy,) = [m.attributes["content"] for m in page.all("meta") if m.attributes.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for tag in ("script", "style"):
        (node,) = page.all(tag)
        assert not node.attributes
        digest = base64.b64encode(hashlib.sha256(node.raw.encode("utf-8")).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


def test_it_asks_for_nothing(site):
    page = read(site)
    assert not any("src" in node.attributes or "style" in node.attributes for node in page.all())
    assert all(link.attributes["href"].startswith("data:") for link in page.all("link"))
    assert all(use.attributes["href"].startswith("#s-") for use in page.all("use"))
    assert "url(" not in next(page.all("style")).raw and "@import" not in next(page.all("style")).raw


def test_names_are_text_and_nothing_more():
    files = render_site(hostile())
    page = read(files)
    assert len(list(page.all("script"))) == 1 and not list(page.all("img"))
    for node in page.all():
        assert not any(name.startswith("on") for name in node.attributes)
        assert re.match("https://|#|data:image/svg", node.attributes.get("href", "#"))
        if node.tag == "a" and not node.attributes["href"].startswith("#"):
            assert node.attributes["rel"] == "noopener noreferrer"
    text = files["index.html"].decode("utf-8")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text)
    seen = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").replace("\u200b", "\\u200b")
    assert page.text.count(seen) > 10  # all of it, shown for what it is
    commands = [shlex.split(code.text) for code in page.all("code") if code.text.startswith("superweight catalog ")]
    assert ["superweight", "catalog", "show", "--json", "--", f"-{seen}"] in commands
    assert {words[-1] for words in commands if len(words) > 3} == {seen, f"-{seen}"}  # one word to a shell


def test_only_addresses_of_the_web_become_links():
    urls = {
        "https://example.org/a?b=c&d": True, "http://example.org": True, "javascript:alert(1)": False,
        "data:text/html,x": False, "https:///nowhere": False, "//example.org": False, "https://[": False,
        "https://google.com@example.org": False, "JaVaScRiPt:alert(1)": False, "file:///etc/passwd": False,
    }  # fmt: skip
    for url, linked in urls.items():
        item = {**ITEM, "sources": [{**ITEM["sources"][0], "url": url}]}
        (source,) = read(render_site(documents(reported=[item]))).all("ul", **{"class": "sources"})
        assert [a.attributes["href"] for a in source.all("a")] == ([url] if linked else [])
        assert "A paper" in source.text


def test_none_is_an_answer_and_what_was_not_measured_is_said():
    none = entry(model="me/none", verdict="none", super_weights=[], super_activations=[])
    early = entry(model="me/early", super_weights=[{**WEIGHT, "effect": None, "loss": None, "loss_zeroed": None}])
    coincident = entry(model="me/beside", super_weights=[{**WEIGHT, "status": "coincident", "effect": "inert"}])
    page = read(render_site(documents(entries=[none, early, coincident])))
    texts = {article.attributes["data-name"]: article for article in page.all("article")}
    assert "Verdict: none." in texts["me/none"].text and not list(texts["me/none"].all("table"))
    assert texts["me/none"].attributes["data-at"] == "none:"
    assert texts["me/early"].attributes["data-at"] == "unmeasured:1"
    assert "not measured" in texts["me/early"].text
    assert texts["me/beside"].attributes["data-at"].split() == ["coincident:1", "none:"]


def test_what_is_told_over_all_prompts_is_there_and_older_entries_lack_it():
    fit = {"limit": 65504.0, "largest": 27363.0, "layer": 2, "where": "residual", "overflows_from": None}
    channel = {"channel": 7, "magnitude": 27363.0, "prompts": 12, "carrying": 11, "everywhere": 0}
    sinks = {"prompts": 12, "positions": [{"position": 0, "prompts": 12, "of": 12}], "tokens": []}
    full = entry(
        headroom={"prompts": 12, "layers": [], "unseen": [], "float16": fit, "float8_e4m3": fit},
        massive_channels=[{**channel, "layers": [1, 2], "magnitudes": [900.0, 27363.0]}],
        sinks=sinks,
        prefix={"ids": [5, 1], "tokens": ["<b>", "<s>"], "outlier_tokens": 1},
    )
    page = read(render_site(documents(entries=[full])))
    (section,) = page.all("section", **{"class": "verified"})
    assert "the largest magnitude is 27,363 in the residual stream after layer 2, over 12 prompts" in section.text
    assert "A prefix to hold them: '<b>' '<s>' (ids 5, 1)." in section.text
    assert "1 massive channel" in section.text
    cells = [cell.text for cell in next(section.all("div", **{"aria-label": "Massive"})).all("td")]
    assert cells == ["7", "1–2", "27,363", "12", "11"]
    (older,) = read(render_site(documents(entries=[entry()]))).all("section", **{"class": "verified"})
    assert "magnitude" not in older.text and "massive" not in older.text


def test_analyses_of_one_model_stand_side_by_side_with_its_reports_in_any_case():
    other = entry(commit="b" * 40, super_weights=[{**WEIGHT, "expert": 7}])
    (article,) = read(
        render_site(documents(entries=[entry(), other], reported=[{**ITEM, "model": "ME/Model-1B"}]))
    ).all("article")
    first, second = article.all("section", **{"class": "verified"})
    assert "a" * 40 in first.text and "b" * 40 in second.text and "analysis 2 of 2" in second.text
    table = "Weights on the super activations’ channels"
    assert "expert" not in rows(first, table)[0] and rows(second, table)[0]["expert"] == "7"
    (others,) = article.all("section", **{"class": "others"})
    assert "The network has 4 layers, 8 rows and 16 columns." in others.text


def test_the_same_name_in_two_families_is_two_panels():
    page = read(render_site({"a": documents(reported=[ITEM])["model"], "b": documents(reported=[ITEM])["model"]}))
    assert [a.attributes["id"] for a in page.all("article")] == ["model=me/model-1b", "model=me/model-1b~2"]


def test_a_models_own_name_is_its_address_whatever_the_others_are():
    def slugs(*names):
        page = read(render_site(documents(reported=[{**ITEM, "model": name} for name in names])))
        return {a.attributes["data-name"]: a.attributes["id"].partition("=")[2] for a in page.all("article")}

    names = ("me/a b", "me/a-b", "me/a?b", "me/a-b~2", "me/a\ud800b")
    every = slugs(*names)
    assert every["me/a-b"] == "me/a-b" and len(set(every.values())) == 5
    assert [slugs(name)[shown(name)] for name in names] == [every[shown(name)] for name in names]


def test_what_is_searched_for(articles):
    found = articles["mistralai/Mistral-7B-v0.1"].attributes
    assert {"2070", "7310"} <= set(found["data-numbers"].split()) and "2024" in found["data-numbers"]
    assert "1" not in found["data-numbers"].split()  # no layers, for which there is a filter
    assert "1,2070,7310" in found["data-search"] and "Reported" in found["data-search"]
    assert "Looked at: coincident" in articles["SmolLM2-135M-Instruct-Q4_1"].attributes["data-search"]
    assert "disputed" in articles["meta-llama/Llama-3.1-8B"].attributes["data-search"]


def test_the_loss_that_joint_zeroing_is_compared_with_is_over_as_much_text():
    joint = {"coordinates": [{axis: WEIGHT[axis] for axis in ("layer", "expert", "row", "col")}], "loss_zeroed": 1.5}
    first = {**WEIGHT, "col": 4, "effect": "inert", "loss": 1.25, "loss_tokens": 5, "control_loss_max": None}

    def said(*weights, **changes):
        text = read(
            render_site(documents(entries=[entry(super_weights=list(weights), joint={**joint, **changes})]))
        ).text
        return text[text.index("zeroed at once") :]

    assert said(WEIGHT).startswith("zeroed at once the loss is 1.5000, from 1.0000. Zeroing 1,2,3 alone costs more")
    assert "loss is 2.5000, from 1.0000." in said(WEIGHT, loss_zeroed=2.5)
    assert "alone costs more" not in said(WEIGHT, loss_zeroed=2.5)
    assert "from 1.0000." in said({**first, "col": 5, "loss": 1.0, "loss_tokens": 10}, first)
    assert said(first).startswith("zeroed at once the loss is 1.5000. ")  # which may be over more text than the other
    assert "of weights that cost next to nothing" not in said(first)
    whole = {**joint, "loss": 1.2, "loss_tokens": 10, "delta_low": 0.25, "delta_high": 0.35}
    assert said(WEIGHT, **whole).startswith(
        "zeroed at once the loss is 1.5000, from 1.2000, over 10 tokens. Zeroing 1,2,3 alone costs more"
    )
    assert "alone costs more" not in said(WEIGHT, **{**whole, "loss_zeroed": 2.5})
    noisy = {**WEIGHT, "loss_tokens": 64}
    assert "alone costs more" not in said(noisy, **whole)  # over so few tokens anything may
    infinite = {**WEIGHT, "loss_zeroed": None}
    assert "alone costs more" in said(infinite, **whole)
    assert said(infinite, **{**whole, "loss_zeroed": None}).startswith("zeroed at once the loss is infinite, from 1.2")
    assert "alone costs more" not in said(infinite, **{**whole, "loss_zeroed": None})
    assert said(**whole).startswith("zeroed at once the loss is 1.5000, from 1.2000, over 10 tokens. ")
    assert said(WEIGHT, loss_tokens=10).startswith("zeroed at once the loss is 1.5000, over 10 tokens. Zeroing 1,2,3")


def test_a_drawing_has_layers_rows_and_columns_in_their_places():
    places = [(0, 0, 0), (0, 0, 99), (5, 4, 50), (9, 9, 0)]
    weights = [("critical", {"layer": layer, "expert": None, "row": row, "col": col}) for layer, row, col in places]
    weights.append(("reported", {"layer": 5, "expert": None, "row": 4, "col": None}))
    drawing = draw(weights, [{**ACTIVATION, "layer": 2, "channel": 4, "last_layer": 8}], Sizes(10, 10, 100))
    left, right, middle, last, row = drawing.marks
    ends = [60 + 64.6 * layer for layer in range(11)]  # of the layers
    assert ends[0] < left.x < right.x < ends[1] and ends[5] < middle.x < ends[6] and ends[9] < last.x < ends[10]
    assert left.y == right.y > middle.y == row.y > last.y
    assert ends[5] < row.x < middle.x < row.x_end < ends[6]  # a whole row is as long as its columns
    (extent,) = drawing.extents
    assert ends[2] < extent.x < ends[3] and ends[8] < extent.x_end < ends[9] and extent.y == middle.y
    assert drawing.layers_known and drawing.rows_known and "not known" not in drawing.caption


def test_a_drawing_of_unknown_size_says_so_and_a_huge_one_is_still_small():
    weight = {"layer": 2, "expert": None, "row": 30, "col": None}
    drawing = draw([("reported", weight), ("reported", {**weight, "col": 0})], [], Sizes())
    assert not drawing.layers_known and not drawing.rows_known
    assert "not known here: the drawing ends at layer 2 and row 30" in drawing.caption
    assert "column" not in drawing.caption
    assert [tick.label for tick in drawing.layer_ticks] == [0, 1, 2]
    row, column = drawing.marks
    assert column.x == drawing.layer_ticks[2].place == pytest.approx((row.x + row.x_end) / 2)  # of the layer's band
    assert draw([("reported", {**weight, "col": 9})], [], Sizes()).marks[0].x == column.x
    huge = draw([("reported", {**weight, "layer": 2**31 - 1})], [], Sizes(10**400, 10**400, 10**400))
    assert len(huge.layer_ticks) <= 16 and not huge.bands and huge.marks[0].x <= 706
