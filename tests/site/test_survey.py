"""The page of a survey: its figures against the result files, nothing of it runs or is loaded, the same bytes twice."""

import base64
import hashlib
import json
import re
import statistics
from collections import Counter

import numpy as np
import pytest
from models import PROMPT, TEXT, plant, random_llama, save
from PIL import Image
from safetensors.numpy import load_file
from scipy import stats
from site_pages import HOSTILE, read, rows
from surveys import CHANNELS, LAYERS, job_of, outlier, random_result, scanned, survey_in, verified, weight

from analyzer.analyze.scanning import scan_model
from analyzer.analyze.verifying import verify_model
from analyzer.base.errors import PlotError
from analyzer.scan.records import ScanSettings
from analyzer.site import survey
from analyzer.site.survey import CLASSES_SAID, GENERATOR, OUTCOMES_SAID, check_report, render_report, write_report
from analyzer.source.opening import open_model
from analyzer.survey.planning import pinned
from analyzer.survey.results.findings import OUTCOMES, find
from analyzer.survey.results.prediction import predict
from analyzer.survey.store import Folder
from analyzer.survey.units import CLASSES, pin_unit
from analyzer.survey.work.job import OK, do_unit

JOB = job_of("analyze")
CORRELATIONS = "Spearman’s ρ of each score with Δ loss; and in how many models the worst critical weight is the first"
FAMILIES = "Families: their models by what became of them; of their weights the median, with the smallest and largest"
WEIGHTS = "Weights: super weights first, by what zeroing them costs"


def text_of(root):
    found = find(root)
    return render_report(found, predict(found.weights))


def page_of(root):
    return read({"index.html": text_of(root).encode("utf-8")})


def stored(root):
    """Return what the result files of a survey say, read without what reads them: (model, weight) pairs."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(root.glob("*/??/*.json"))]
    return [(f["unit"]["model"], w) for f in files if "result" in f for w in f["result"]["super_weights"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A survey of three families, with one that has no super weight and failures."""
    results = {f"o/{('oak', 'elm', 'ash')[n % 3]}-{n}b": random_result(n) for n in range(12)}
    results["o/none-1b"] = verified([])
    failures = {"o/late-1b": ("timeout", "it took longer"), "o/odd-1b": ("unsupported", "no <b>down</b> projection")}
    folder = tmp_path_factory.mktemp("survey") / "out"
    return survey_in(folder, JOB, results, {**failures, "o/missing-1b": None}).root


@pytest.fixture(scope="module")
def page(root):
    return page_of(root)


def test_what_became_of_the_models(root, page):
    totals = {next(each.all("dt")).text: next(each.all("dd")).text for each in next(page.all("dl")).all("div")}
    critical = {m for m, w in stored(root) if w["effect"] == "critical"}
    assert totals == {"critical": str(len(critical)), "none found": "1", "failed": "2", "not run yet": "1"}
    assert next(page.all("h1")).text == "A survey of 16 models"
    assert next(s for s in page.all("section") if s.attributes["id"] == "none").text == "None found o/none-1b."


def test_correlations_are_those_of_the_files(root, page):
    table = {(row["score"], row["zeroed"]): row for row in rows(page, CORRELATIONS)}
    alone = [(m, w) for m, w in stored(root) if w["zeroed_with"] is None]
    effects = [w["delta"] for _, w in alone]
    for score, values in {
        "rank by |W| (static)": [-w["static_rank"] for _, w in alone],
        "|W| (static)": [abs(w["value"]) for _, w in alone],
        "share of the write (of one forward pass)": [w["share"] for _, w in alone],
    }.items():
        row = table[score, "alone"]
        assert row["ρ"] == f"{stats.spearmanr(values, effects).statistic:+.2f}"
        assert (row["weights"], row["models"]) == (str(len(alone)), "12")
    low, high = map(float, table["|W| (static)", "alone"]["95 % interval"].split(" to "))
    names = sorted({m for m, _ in alone})
    draw, drawn = np.random.default_rng(99), []  # another seed: about the same interval
    for _ in range(300):
        some = [names[n] for n in draw.integers(12, size=12)]
        pairs = [(abs(w["value"]), w["delta"]) for name in some for m, w in alone if m == name]
        drawn.append(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    assert (low, high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.12)
    costs = [w for _, w in alone if w["effect"] == "critical"]
    worst = {m: max((w for n, w in alone if n == m and w in costs), key=lambda w: w["delta"]) for m, _ in alone}
    first = sum(w["static_rank"] == 1 for w in worst.values())
    assert table["rank by |W| (static)", "alone"]["worst is first"] == f"{first} of {len(worst)}"
    assert table["rank by |W| (static)", "alone or in a group"]["weights"] == str(len(stored(root)))


def test_families_are_those_of_the_files(root, page):
    table = {row["family"]: row for row in rows(page, FAMILIES)}
    assert {name: row["models"] for name, row in table.items()} == {
        **{"oak": "4", "elm": "4", "ash": "4"},
        **dict.fromkeys(("late", "missing", "none", "odd"), "1"),
    }
    here = [w for m, w in stored(root) if m.startswith("o/elm") and w["status"] == "confirmed"]
    shown = table["elm"]
    assert (shown["weights"], shown["critical"], shown["failed"]) == (str(len(here)), "4", "0")
    for column, values, form in (
        ("depth", [w["layer"] / (LAYERS - 1) for w in here], ".2f"),
        ("|W|", [abs(w["value"]) for w in here], ".3g"),
        ("share", [w["share"] for w in here], ".2f"),
        ("Δ loss", [w["delta"] for w in here], "+.3g"),
    ):
        middle, low, high = (format(f(values), form) for f in (statistics.median, min, max))
        assert shown[column] == f"{middle} ({low} to {high})"
    (row, count), *_ = sorted(Counter(w["row"] for w in here).items(), key=lambda each: (-each[1], each[0]))
    assert shown["rows"].startswith(f"{row} ×{count}")
    assert (table["late"]["failed"], table["late"]["depth"], table["missing"]["not run yet"]) == ("1", "-", "1")


def test_weights_are_those_of_the_files(root, page, monkeypatch):
    table = rows(page, WEIGHTS)
    expected = sorted(stored(root), key=lambda each: (each[1]["status"] == "rejected", -each[1]["delta"]))
    assert [(r["model"], r["weight"]) for r in table] == [
        (m, f"{w['layer']},{w['row']},{w['col']}") for m, w in expected
    ]
    for shown, (_, w) in zip(table, expected, strict=True):
        assert (shown["value"], shown["share"], shown["rank"]) == (
            *(f"{w['value']:+.4g}", f"{w['share']:.2f}", f"{w['static_rank']:,}"),
        )
        of = " (with 7 others)" if w["zeroed_with"] else ""
        assert shown["Δ loss"] == f"{w['delta']:+.4f} ±0.1000{of}"
        assert shown["super weight"] == ("none" if w["status"] == "rejected" else OUTCOMES_SAID[w["effect"]])
        assert shown["in its row"] == f"{7 * abs(w['value']):.1f}"
        assert shown["gain rank"] == {0: "2", 1: "1"}.get(w["col"], "3")
    monkeypatch.setattr(survey, "MAX_ROWS", 5)
    cut = page_of(root)
    assert rows(cut, WEIGHTS) == table[:5]
    assert f"And {len(expected) - 5} more" in cut.text


def test_why_models_failed(page):
    section = next(s for s in page.all("section") if s.attributes["id"] == "failures")
    assert [each.text for each in section.all("h4")] == ["Refused: not supported: 1", "Failed: time: 1"]
    assert [each.text for each in section.all("li")] == [
        "o/odd-1b (analyze): no <b>down</b> projection",
        "o/late-1b (analyze): it took longer",
    ]


def test_it_is_self_contained_and_the_same_twice(root, page):
    text = text_of(root)
    assert text == text_of(root)
    assert GENERATOR in text.encode("utf-8")[:4096]
    assert [image.attributes["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"] * 3
    assert all(image.attributes["alt"] for image in page.all("img"))
    assert not [node for node in page.all() if node.tag in ("script", "link", "iframe", "object", "embed", "form", "a")]
    (style,) = page.all("style")
    digest = base64.b64encode(hashlib.sha256(style.raw.encode("utf-8")).digest()).decode("ascii")
    policy = next(m for m in page.all("meta") if m.attributes.get("http-equiv")).attributes["content"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script-src" not in policy
    assert "url(" not in style.raw


def test_the_pictures_have_marks_in_the_colours_of_their_kinds(root, page, tmp_path):
    for image in page.all("img"):
        path = tmp_path / "picture.png"
        path.write_bytes(base64.b64decode(image.attributes["src"].partition(",")[2]))
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=int).reshape(-1, 3)
        for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)):  # critical, inert, over white at three quarters
            blended = 255 - 0.75 * (255 - np.array(colour))
            assert (np.abs(pixels - blended).max(axis=1) < 4).sum() > 50


@pytest.mark.filterwarnings("error")
def test_nothing_hostile_runs_or_is_drawn_as_markup(tmp_path):
    name = f"o/{HOSTILE} $\\frac"
    bad = weight(1, 2, 3, 4.0, tower=HOSTILE)
    survey_in(tmp_path, JOB, {name: verified([bad]), f"{name}2": verified([])}, {f"{name}3": ("bug", HOSTILE)})
    text, page = text_of(tmp_path), page_of(tmp_path)
    assert not list(page.all("script"))
    assert {image.attributes["src"][:22] for image in page.all("img")} == {"data:image/png;base64,"}
    assert not [key for node in page.all() for key in node.attributes if key.startswith("on") or key == "style"]
    assert not set("\u202e\x1b\u200b") & set(text)
    assert "{{ 7 * 7 }}" in page.text
    assert page.text.count("<script>window.pwned=1</script>") == 5  # weight: model and tower; none; failure: twice


def test_an_empty_survey_says_so(tmp_path):
    page = page_of(survey_in(tmp_path, JOB).root)
    assert next(page.all("h1")).text == "A survey of 0 models"
    assert "No model was asked for yet." in page.text
    assert not list(page.all("img"))


def test_of_a_scan_it_says_what_is_missing(tmp_path):
    results = {f"o/oak-{n}b": scanned([outlier(1, n, n, 2, n + 0.5), outlier(2, 0, 0, 0, 0.1)]) for n in range(4)}
    page = page_of(survey_in(tmp_path, job_of("scan"), results).root)
    assert "No model was run, so that it is not known which outliers are super weights" in page.text
    assert [next(section.all("h2")).text for section in page.all("section")][1:] == [
        *("Where the first outliers sit", "Values"),
    ]
    assert len(list(page.all("img"))) == 1
    assert [(r["weight"], r["super weight"], r["rank"], r["z"]) for r in rows(page, WEIGHTS)] == [
        (f"{n},{n},2", "outlier", "1", f"{10 * (n + 0.5):.1f}") for n in range(4)
    ]
    (family,) = rows(page, FAMILIES)
    assert (family["only scanned"], family["depth"], family["rows"]) == ("4", "0.15 (0.00 to 0.30)", "0, 1 and 2 more")


def test_effects_that_were_not_measured_and_too_few_are_said(tmp_path):
    early = weight(1, 2, 3, 4.0, effect=None, delta=None, delta_low=None, delta_high=None, static_rank=None)
    page = page_of(survey_in(tmp_path / "early", JOB, {"o/m": {"super_weights": [early]}}).root)
    assert "No effect was measured" in page.text
    assert "Of 1 weight the results do not tell how many blocks and channels there are" in page.text
    assert rows(page, WEIGHTS)[0]["Δ loss"] == rows(page, WEIGHTS)[0]["gain rank"] == "-"
    page = page_of(survey_in(tmp_path / "few", JOB, {"o/m": verified([weight(0, 0, 0, 1.0)])}).root)
    assert "There are too few weights to tell, or they vary too little: 20 weights of 10 models are" in page.text
    assert {row["ρ"] for row in rows(page, CORRELATIONS)} == {"too few"}


def test_effects_that_are_all_the_same_are_not_too_few(tmp_path):
    results = {f"o/m{n}": verified([weight(0, 0, col, 1.0 + col) for col in range(3)]) for n in range(12)}
    page = page_of(survey_in(tmp_path, JOB, results).root)
    assert {row["ρ"] for row in rows(page, CORRELATIONS) if row["weights"] == "36"} == {"varies too little"}
    assert "or they vary too little" in page.text


def test_where_nothing_was_found_no_heading_says_so(tmp_path):
    page = page_of(survey_in(tmp_path, JOB, failures={"o/m": ("gone", "no such model")}).root)
    assert [next(section.all("h2")).text for section in page.all("section")][1:] == ["Families", "Refused and failed"]


def test_what_is_not_drawn_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "MAX_DRAWN_FAMILIES", 2)
    monkeypatch.setattr(survey, "MAX_FAMILIES", 3)
    monkeypatch.setattr("analyzer.survey.results.findings.MAX_MODELS", 4)
    results = {f"o/{'abcde'[n]}-1b": verified([weight(n, n, n, 1.0)]) for n in range(5)}
    page = page_of(survey_in(tmp_path, JOB, results).root)
    assert "2 more families have weights; drawn are those of the most models" in page.text
    assert [row["family"] for row in rows(page, FAMILIES)] == ["a", "b", "c"]
    assert "And 2 more families, of fewer models." in page.text
    assert "Weights are those of 4 models, drawn from the 5 that have any" in page.text


def test_every_outcome_and_class_has_its_words():
    assert tuple(OUTCOMES_SAID) == OUTCOMES
    assert set(CLASSES_SAID) == set(CLASSES)


def test_what_is_not_ours_is_left_alone(tmp_path):
    path = tmp_path / "report.html"
    write_report(f"<!doctype html>{GENERATOR.decode()}", path)
    write_report(f"<!doctype html>{GENERATOR.decode()} again", path)
    assert path.read_text().endswith("again")
    path.write_text("<p>mine")
    with pytest.raises(PlotError, match="is no report that this tool wrote"):
        write_report("", path)
    assert path.read_text() == "<p>mine"
    with pytest.raises(PlotError, match=re.escape("give a name that ends in .html")):
        check_report(tmp_path / "report.png")
    with pytest.raises(PlotError, match="cannot write"):
        check_report(tmp_path / "none" / "report.html")


@pytest.mark.slow
def test_a_real_verification_has_its_figures_on_the_page(tmp_path):
    """A planted weight, surveyed by the job itself, against a verification and a scan by gain of their own."""
    save(plant(random_llama()), tmp_path / "planted-1b")
    job, folder = job_of("verify", prompt=PROMPT, text=TEXT, device="cpu"), Folder(tmp_path / "out")
    name = str(tmp_path / "planted-1b")
    assert do_unit(folder, pin_unit(name)) == OK
    unit = pinned(folder, name).unit(job)
    folder.save_job(job, [unit])
    assert do_unit(folder, unit) == OK
    expected = verify_model(open_model(name), job.verify)
    gains = scan_model(open_model(name), ScanSettings(score="gain"))
    ranks = {each.coordinate: each.rank for each in gains.outliers}
    downs = load_file(tmp_path / "planted-1b" / "model.safetensors")
    table = {row["weight"]: row for row in rows(page_of(folder.root), WEIGHTS)}
    assert set(table) == {str(w.coordinate) for w in expected.super_weights}
    for w in expected.super_weights:
        row = table[str(w.coordinate)]
        assert row["rank"] == f"{w.static_rank:,}"
        assert row["gain rank"] == f"{ranks.get(w.coordinate, len(ranks) + 1):,}"
        assert row["share"] == f"{w.share:.2f}"
        assert row["depth"] == f"{w.layer / (gains.num_layers - 1):.2f}"
        assert row["Δ loss"].startswith(f"{w.delta:+.4f}")
        line = downs[f"model.layers.{w.layer}.mlp.down_proj.weight"][w.row].astype(np.float64)
        assert row["in its row"] == f"{abs(line[w.col]) / np.sqrt((line**2).mean()):,.1f}"
    assert gains.hidden_size != CHANNELS
    (family,) = rows(page_of(folder.root), FAMILIES)
    assert (family["family"], family["models"]) == ("planted", "1")
