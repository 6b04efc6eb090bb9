"""The catalog's page in a real browser: filters, links, keyboard, phones, contrast; and nothing hostile runs."""

import functools
import http.server
import io
import os
import shutil
import threading
from urllib.parse import urlencode

import numpy
import pytest
from PIL import Image
from site_pages import ENTRIES, NAMES, REPORTED, ROOT, hostile

from analyzer.catalog.files import read_documents
from analyzer.site.page import render_site, write_site

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def site():
    return render_site(read_documents(ROOT / "catalog"))


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with api.sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which Chromium has none of for root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(site, folder)
    return (folder / "index.html").as_uri()


@pytest.fixture
def visit(browser):
    """Open pages, and hold at the end that none asked for anything but itself, or complained."""
    contexts, requests, complaints = [], [], []

    def go(address, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options}))
        contexts[-1].set_default_timeout(5000)
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith("data:") and "index.html" not in url] == []
    assert complaints == []


def seen(page):
    names = page.evaluate(
        "[...document.querySelectorAll('.model')].filter((m) => m.checkVisibility()).map((m) => m.dataset.name)"
    )
    assert page.locator("#count").text_content() == (
        f"{len(NAMES)} models" if len(names) == len(NAMES) else f"{len(names)} of {len(NAMES)} models"
    )
    return names


def opened(page):
    return page.evaluate("[...document.querySelectorAll('.model:has(> details[open])')].map((m) => m.dataset.name)")


def expected(*, family="", layer=None, standing="", words=()):
    """Return the names that a filter leaves, from the files themselves."""
    found = set()
    for of, item in REPORTED:
        sources = [source["name"] for _, i in REPORTED if i["model"] == item["model"] for source in i["sources"]]
        text = " ".join([item["model"], of, *sources])
        if (
            family in ("", of)
            and layer in (None, item["layer"])
            and standing in ("", item["standing"])
            and all(word.lower() in text.lower() for word in words)
        ):
            found.add(item["model"])
    for of, known in ENTRIES:
        for weight in known["super_weights"]:
            kind = weight["effect"] if weight["status"] == "confirmed" else weight["status"]
            if (
                family in ("", of)
                and layer in (None, weight["layer"])
                and standing in ("", kind)
                and all(word.lower() in f"{known['model']} {of} {known['method']['tool']}".lower() for word in words)
            ):
                found.add(known["model"])
    return found


def test_search_and_filters_leave_what_they_should(visit, address):
    page = visit(address)
    assert set(seen(page)) == NAMES
    for words in (["MISTRAL"], ["qwen3"], ["yu", "llama"], ["Georgakopoulos", "census"], ["superweight-analyzer"]):
        page.fill("[name=q]", " ".join(words))
        assert set(seen(page)) == expected(words=words) != set(), words
    page.fill("[name=q]", "no such thing")
    assert seen(page) == [] and page.locator("#none").is_visible()
    page.click("#clear")
    for name in ("family", "layer", "standing"):
        for value in page.eval_on_selector_all(f"[name={name}] option", "all => all.map((one) => one.value)")[1:]:
            page.select_option(f"[name={name}]", value)
            wanted = expected(**{name: int(value) if name == "layer" else value})
            assert set(seen(page)) == wanted != set(), (name, value)
        page.select_option(f"[name={name}]", "")
    both = {"layer": 1, "standing": "coincident"}  # a model has each of them, and none has both in one coordinate
    assert expected(layer=1) & expected(standing="coincident") and not expected(**both)
    page.select_option("[name=layer]", "1")
    page.select_option("[name=standing]", "coincident")
    assert seen(page) == []
    page.click("#clear")
    assert set(seen(page)) == NAMES and page.evaluate("document.activeElement.name") == "q"
    page.select_option("[name=sort]", "name")
    assert seen(page) == sorted(NAMES, key=str.lower)


def test_a_link_restores_a_view(visit, address):
    page = visit(address)
    page.fill("[name=q]", "llama")
    page.select_option("[name=standing]", "disputed")
    page.click("summary:has-text('Llama-3.1-8B-Instruct')")
    page.wait_for_function("location.hash.includes('model=')")
    again = visit(page.url)
    assert seen(again) == seen(page) and set(seen(again)) == expected(words=["llama"], standing="disputed")
    assert opened(again) == opened(page) == ["meta-llama/Llama-3.1-8B-Instruct"]
    again.evaluate("location.hash = '#model=mistralai/Mistral-7B-v0.1'")
    again.wait_for_function("document.querySelector('[name=q]').value === ''")
    assert opened(again) == ["mistralai/Mistral-7B-v0.1"] and set(seen(again)) == NAMES
    assert again.locator("article:has(details[open])").first.evaluate(
        "e => e.getBoundingClientRect().top < innerHeight"
    )


@pytest.mark.parametrize(("field", "value"), [("family", '"nosuch'), ("layer", "12345"), ("standing", "<b>x")])
def test_a_filter_that_nothing_passes_is_seen(visit, address, field, value):
    page = visit(f"{address}#{urlencode({field: value})}")
    assert seen(page) == [] and page.get_by_text("No model matches.").is_visible()
    chosen = page.locator(f"[name={field}] option:checked")
    assert chosen.text_content() == value and page.locator("#clear").is_visible()
    page.select_option(f"[name={field}]", index=1)
    assert seen(page) != [] and chosen.text_content() != value
    assert value not in page.locator(f"[name={field}] option").all_text_contents()
    page.evaluate("location.hash = '#sort=nosuch'")
    page.wait_for_function(f"document.querySelector('#count').textContent === '{len(NAMES)} models'")


def test_a_model_that_is_not_there_is_said_to_be_missing(visit, address):
    page = visit(f"{address}#model=nosuch/model&model=mistralai/Mistral-7B-v0.1&model=%3Cscript%3E")
    assert set(seen(page)) == NAMES and opened(page) == ["mistralai/Mistral-7B-v0.1"]
    assert page.locator("#missing").text_content() == "No model nosuch/model or <script> here."
    page.click("summary:has-text('falcon-7b')")
    page.wait_for_function("location.hash.includes('falcon-7b')")
    assert "model=nosuch/model" in page.url and page.locator("#missing").is_visible()
    page.fill("[name=q]", "llama")
    assert not page.locator("#missing").is_visible() and "nosuch" not in page.url
    assert not visit(address).locator("#missing").is_visible()


def test_numbers_are_found_whole_and_statuses_too(visit, address):
    page = visit(address)

    def found(words):
        page.fill("[name=q]", words)
        return set(seen(page))

    for number in (7310, 2070, 507):
        known = {item["model"] for _, item in REPORTED if number in (item["row"], item["col"])}
        known |= {e["model"] for _, e in ENTRIES for w in e["super_weights"] if number in (w["row"], w["col"])}
        assert found(str(number)) == known != set()
    assert found("731") == set()
    for words in ("1,2070,7310", "(1,2070,7310)", "1, 2070, 7310", "mistral (1, 2070, 7310)"):
        assert found(words) == found("7310")
    assert found("llama 2") == {"meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"}
    assert found("7b") == {name for name in NAMES if "7b" in name.lower().rpartition("/")[2].split("-")}
    assert "Qwen/Qwen2.5-7B" not in found("qwen2") and "Qwen/Qwen2-7B-Instruct" in found("qwen2")
    assert found("smollm2-135m-inst") == {"SmolLM2-135M-Instruct-Q4_1"}
    assert found("yu 2024") == expected(words=["yu", "2024"])
    assert found("disputed") == expected(standing="disputed") and found("critical") == expected(standing="critical")
    for words in (".*", "[", "a|b", "\\", "$"):
        assert found(words) == set()
    assert found("(") != set() and found("()") == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_scrolls_has_a_shade_where_there_is_more(visit, address, scheme):
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    page = visit(f"{address}#model=SmolLM2-135M-Instruct-Q4_1", **options)
    table = page.get_by_role("region", name="Verified weights")
    assert table.evaluate("e => e.scrollWidth > e.clientWidth")

    def shades():
        picture = numpy.asarray(Image.open(io.BytesIO(table.screenshot())).convert("L"), dtype=int)
        page_colour = numpy.median(picture)
        # By the edges, where most of the pixels are of the background even if there is text.
        return [bool(abs(numpy.median(picture[:, x]) - page_colour) > 20) for x in (0, -1)]

    assert shades() == [False, True]
    table.evaluate("e => { e.scrollLeft = e.scrollWidth / 2 - e.clientWidth / 2; }")
    assert shades() == [True, True]
    table.evaluate("e => { e.scrollLeft = e.scrollWidth; }")
    assert shades() == [True, False]


def test_it_is_used_by_keyboard_alone(visit, address):
    page = visit(address)
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the models"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    press("/")
    assert page.evaluate("document.activeElement.name") == "q"
    page.keyboard.type("mistral/")
    assert page.input_value("[name=q]") == "mistral/"  # in a field it is a letter
    press("Escape")
    assert page.input_value("[name=q]") == "" and set(seen(page)) == NAMES
    page.keyboard.type("mistral")
    for name in ("family", "layer", "standing", "sort"):
        press("Tab")
        assert page.evaluate("document.activeElement.name") == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    press("Tab")
    press("Enter")
    assert opened(page) == ["mistralai/Mistral-7B-v0.1"]
    reached = set()
    for _ in range(30):
        press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        )
    assert {"Link to this model", "Reported weights", "Yu et al. 2024, Table 2", "Copy"} <= reached


def test_the_command_is_selected_and_copied(visit, address):
    page = visit(f"{address}#model=mistralai/Mistral-7B-v0.1")
    page.locator("details[open] .copy").first.click()
    page.wait_for_function("document.querySelector('details[open] .copy').textContent !== 'Copy'")
    assert page.evaluate("getSelection().toString()") == "superweight catalog show --json mistralai/Mistral-7B-v0.1"


def test_nothing_is_wider_than_the_screen(visit, address):
    page = visit(address)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for width in (360, 700, 1000):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.querySelector('table').checkVisibility()")


CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const [r, g, b] = rgba(color).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return "white";
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const worst = {text: [99], mark: [99]};
  const note = (kind, value, what) => { if (value < worst[kind][0]) worst[kind] = [value, what]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("title, desc, symbol")) continue;
    const style = getComputedStyle(element);
    note("text", ratio(element.closest("svg") ? style.fill : style.color, behind(element)), texts.currentNode.data);
  }
  const tint = getComputedStyle(document.querySelector("details[open] > summary")).backgroundColor;
  for (const mark of document.querySelectorAll("use, .row, .tick, .extent")) {
    const style = getComputedStyle(mark);
    const color = mark.matches("use") ? style.color : style.stroke;
    for (const back of [behind(mark), tint]) note("mark", ratio(color, back), mark.outerHTML);
  }
  for (const field of document.querySelectorAll("input, select, button")) {
    note("mark", ratio(getComputedStyle(field).borderTopColor, behind(field.parentElement)), field.outerHTML);
  }
  return {...worst, page: light(getComputedStyle(document.body).backgroundColor)};
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_in_light_and_dark(visit, address, scheme):
    page = visit(address, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    worst = page.evaluate(CONTRASTS)
    assert worst["page"] > 0.9 if scheme == "light" else worst["page"] < 0.02
    assert 4.5 <= worst["text"][0] < 21, worst["text"]  # WCAG AA: of text,
    assert 3 <= worst["mark"][0] < 21, worst["mark"]  # and of what is drawn


def test_all_of_it_is_readable_without_its_script(visit, address):
    page = visit(address, java_script_enabled=False)
    assert not page.locator("#filters").is_visible() and page.locator("noscript").is_visible()
    page.locator("[data-name='Qwen/Qwen3-30B-A3B'] summary").click()
    assert page.get_by_text("68", exact=True).first.is_visible() and page.get_by_role("img").is_visible()


def test_nothing_of_a_hostile_catalog_runs(visit, tmp_path):
    files = render_site(hostile())
    write_site(files, tmp_path)
    page = visit((tmp_path / "index.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.fill("[name=q]", "<script>")
    assert page.evaluate("window.pwned") is None
    assert "<script>window.pwned=1</script>" in page.locator(".model h3").first.text_content()
    assert page.evaluate("document.documentElement.scrollWidth") == 1000


def test_even_markup_that_is_not_escaped_does_not_run(browser, tmp_path, site):
    bad = (
        b"<script>window.pwned=1</script><img src='x.png' onerror='window.pwned=1'><b style='color:red' id=b>b</b><h1>"
    )
    (tmp_path / "index.html").write_bytes(site["index.html"].replace(b"<h1>", bad, 1))
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    assert page.locator("#filters").is_visible()  # its own script ran
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("getComputedStyle(document.getElementById('b')).color") != "rgb255,0,0"
    page.close()


def test_it_opens_in_a_frame_from_a_server_as_a_space_shows_it(browser, site, tmp_path):
    write_site(site, tmp_path / "site")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    frame = "<iframe src='site/index.html#standing=disputed' sandbox='allow-scripts allow-same-origin'></iframe>"
    (tmp_path / "index.html").write_text(f"<link rel=icon href='data:,'>{frame}")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        inside = page.frames[1]
        assert set(seen(inside)) == expected(standing="disputed")
        page.close()
        server.shutdown()
    assert asked == ["/", "/site/index.html"]
