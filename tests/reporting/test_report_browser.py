"""Reports in a real browser: nothing fails, nothing is loaded, everything can be seen, tables sort."""

from __future__ import annotations

import base64
import json

import pytest
from report_cases import HOSTILE, llama

from lorakit import LegoMerger, SVDPruner, report

pytestmark = pytest.mark.browser
WIDTHS = (1400, 400)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind, by name."""
    folder = tmp_path_factory.mktemp("pages")
    adapters = llama(20, 5, rank=2, names=["law", "medicine", HOSTILE, "a" * 300, "código_名前"])
    few = llama(3, 3)
    made = {
        "set": report(adapters),
        "merge": report(adapters, LegoMerger(k=4, random_state=0).fit(adapters)),
        "prune": report(few, SVDPruner(k=2).fit_transform(few)),
        "alone": report([], LegoMerger(k=4, random_state=0).fit(few).merged_),
    }
    return {name: page.save(folder / f"{name}.html").as_uri() for name, page in made.items()}


@pytest.fixture
def look(browser):
    """Return a function that opens a page at a width, in a scheme, with or without scripts, or as it is printed."""

    def open_page(url, *, width=1400, scheme="light", media="screen", scripts=True):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        browser.get_log("performance"), browser.get_log("browser")  # of the page before
        browser.get(url)
        return browser

    yield open_page
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


KINDS = ["set", "merge", "prune", "alone"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fails_and_nothing_is_loaded(look, pages, kind):
    page = look(pages[kind])
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith("data:")] == [pages[kind]]
    assert page.execute_script("return document.compatMode") == "CSS1Compat"
    # the policy is in force: what a name could smuggle in would not run, and nothing could be sent
    page.execute_script(
        "const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s)"
    )
    assert page.execute_script("return window.ran") is None
    assert "Content Security Policy" in page.get_log("browser")[0]["message"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_seen_and_the_page_does_not_overflow(look, pages, kind, width):
    page = look(pages[kind], width=width)
    assert page.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    seen = page.execute_script(
        """return [...document.querySelectorAll("svg.chart, svg.bar, svg.sample, table, pre, .advice li")]
        .filter((e) => !e.closest("details"))
        .map((e) => [e.tagName, e.getBoundingClientRect().width, e.getBoundingClientRect().height,
                     e.checkVisibility({visibilityProperty: true, opacityProperty: true})])"""
    )
    assert len(seen) > 4
    assert all(wide > 10 and high > 5 and visible for _, wide, high, visible in seen), seen
    texts = page.execute_script(
        "return [...document.querySelectorAll('svg.chart text')].map((e) => e.getBoundingClientRect().height)"
    )
    assert min(texts, default=9) >= 8.5  # pixels: charts are not shrunk until they cannot be read


def cells(page, table, column):
    """The texts of one column of a table, from the top."""
    return page.execute_script("return [...arguments[0].tBodies[0].rows].map((r) => r.cells[arguments[1]].textContent)",
                               table, column)  # fmt: skip


def numbers(texts):
    return [float(text.replace("−", "-").replace("%", "").replace(",", "")) for text in texts]


def test_tables_sort_by_mouse_and_by_keyboard(look, pages):
    keys = pytest.importorskip("selenium.webdriver").Keys
    page = look(pages["merge"])
    table = page.find_element("css selector", "#kept table.sortable")
    heads = table.find_elements("css selector", "thead th")
    names = [head.text.split("\xa0")[0].strip() for head in heads]
    kept = names.index("kept")
    before = numbers(cells(page, table, kept))
    assert before != sorted(before, reverse=True)
    assert [head.get_attribute("aria-sort") for head in heads] == ["none", None] + ["none"] * (len(heads) - 2)
    heads[kept].find_element("tag name", "button").click()
    assert numbers(cells(page, table, kept)) == sorted(before, reverse=True)
    assert heads[kept].get_attribute("aria-sort") == "descending"
    button = heads[kept].find_element("tag name", "button")
    button.send_keys(keys.ENTER)
    assert numbers(cells(page, table, kept)) == sorted(before)
    assert heads[kept].get_attribute("aria-sort") == "ascending"
    page.execute_script("arguments[0].focus()", heads[kept].find_element("tag name", "button"))
    page.switch_to.active_element.send_keys(keys.SHIFT + keys.TAB)  # back to the heading before it
    assert page.switch_to.active_element.text.startswith("adapter")
    page.switch_to.active_element.send_keys(keys.SPACE)
    assert heads[0].get_attribute("aria-sort") == "ascending"
    assert heads[kept].get_attribute("aria-sort") == "none"
    assert cells(page, table, 0)[-2:] == ["law", "medicine"]
    # rows stay whole
    assert sorted(numbers(cells(page, table, kept))) == sorted(before)


def test_every_sortable_table_sorts(look, pages):
    page = look(pages["merge"], width=400)
    wrong = page.execute_script(
        """const wrong = [];
        for (const table of document.querySelectorAll("table.sortable"))
          for (const head of table.tHead.rows[0].cells) {
            const button = head.querySelector("button");
            if (!button) continue;
            const rows = new Set(table.tBodies[0].rows);
            button.click();
            const values = [...table.tBodies[0].rows].map((r) => r.cells[head.cellIndex])
              .map((c) => c.dataset.v ?? c.textContent.trim());
            const given = values.filter((v) => v !== "–" && v !== "").map(Number);
            const down = given.every((v, i) => isNaN(v) || i === 0 || given[i - 1] >= v);
            if (head.classList.contains("num") && !down) wrong.push([head.textContent, values]);
            if (rows.size !== table.tBodies[0].rows.length) wrong.push(["rows", head.textContent]);
          }
        return wrong"""
    )
    assert wrong == []


def test_it_can_be_read_without_scripts(look, pages):
    page = look(pages["merge"], scripts=False)
    assert page.find_elements("css selector", "th button") == []
    assert len(page.find_elements("css selector", "table.sortable")) > 3
    assert page.find_element("css selector", "svg.chart").is_displayed()


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgb = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (c) => {
  const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; }
  return [255, 255, 255, 255];
};
const low = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  const text = walk.currentNode.textContent.trim();
  if (!text || e.closest("script, style, .unseen, .skip, details") || !e.checkVisibility()) continue;
  const style = getComputedStyle(e);
  const [a, b] = [light(rgb(e.closest("svg") ? style.fill : style.color)), light(behind(e))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) low.push([e.className.baseVal ?? e.className, text.slice(0, 30), ratio]);
}
return low"""


def every_step(page):
    """Put a cell of every colour into a page, so that all of them are looked at."""
    page.execute_script(
        """const p = document.createElement("p");
        for (const n of ["p1","p2","p3","p4","p5","p6","n1","n2","n3","n4","n5","n6","s0","s1","s2","s3","s4","s5","s6",
                         "s7","s8","s9","z","self","none"]) {
          const s = document.createElement("span"); s.className = n; s.textContent = "0.5"; p.append(s);
        }
        document.body.append(p)"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["merge", "prune"])
def test_texts_have_contrast_in_both_schemes(look, pages, kind, scheme):
    page = look(pages[kind], scheme=scheme)
    every_step(page)
    assert page.execute_script(CONTRAST) == []
    paper = page.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_focus_can_be_seen(look, pages):
    keys = pytest.importorskip("selenium.webdriver").Keys
    page = look(pages["prune"])
    page.find_element("tag name", "body").send_keys(keys.TAB)
    first = page.switch_to.active_element
    assert first.text == "Skip to the report"
    assert first.rect["x"] >= 0
    for _ in range(6):
        page.switch_to.active_element.send_keys(keys.TAB)
        assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_in_print(look, pages):
    page = look(pages["merge"], scheme="dark", media="print", width=794)  # A4 at 96 dots an inch
    found = page.execute_script(
        """const frame = document.querySelector(".frame.tall");
        return [getComputedStyle(document.querySelector("nav")).display, getComputedStyle(frame).overflowY,
                frame.clientHeight === frame.scrollHeight, getComputedStyle(document.documentElement).backgroundColor,
                getComputedStyle(document.querySelector("[class^=s]")).printColorAdjust]"""
    )
    assert found == ["none", "visible", True, "rgb(255, 255, 255)", "exact"]
    # A button is painted once, and the head of a table is repeated on every page.
    titles = page.execute_script(
        "return [...document.querySelectorAll('thead button')].map(b => getComputedStyle(b).display)"
    )
    assert set(titles) == {"contents"}
    page = look(pages["merge"])
    printed = page.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    )
    assert base64.b64decode(printed["data"]).startswith(b"%PDF-")
