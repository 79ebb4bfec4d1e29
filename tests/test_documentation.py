"""The pages: they build without a warning, and look right in a browser, wide and narrow, without a network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
# What is too wide for the window and cannot be moved by itself: the page would have to be moved sideways.
TOO_WIDE = """
const width = document.documentElement.clientWidth;
const moves = e => ["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX);
const held = e => { for (let p = e.parentElement; p; p = p.parentElement) if (moves(p)) return true; return false; };
return [...document.querySelectorAll("article *")]
  .filter(e => e.getBoundingClientRect().width && e.getBoundingClientRect().right > width + 1 && !held(e))
  .map(e => e.tagName + ": " + e.textContent.slice(0, 60));
"""


@pytest.mark.slow
def test_pages_build_and_show(tmp_path, browser_or_none):
    html = tmp_path / "html"
    build = ["sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees", "docs", html]
    done = subprocess.run([sys.executable, "-m", *build], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = [path for path in html.rglob("*.html") if not {"_modules", "_static", "generated"} & set(path.parts)]
    assert len(pages) > 60
    if browser_or_none is None:
        return
    found = {}
    for page in sorted(pages):
        if seen := faults(browser_or_none, page):
            found[page.relative_to(html).as_posix()] = seen
    assert not found
    browser_or_none.get((html / "user_guide" / "merging.html").as_uri())
    browser_or_none.set_script_timeout(600)
    shown = "MathJax.startup.promise.then(() => arguments[0](document.querySelectorAll('mjx-container').length))"
    assert browser_or_none.execute_async_script(shown) > 10


def faults(browser, page):
    """What is wrong with a page: parts too wide for a wide or a narrow window, errors, files from elsewhere."""
    browser.get_log("browser"), browser.get_log("performance")  # forget what came before
    resize(browser, 1400)
    browser.get(page.as_uri())
    found = [f"at 1400: {part}" for part in browser.execute_script(TOO_WIDE)]
    resize(browser, 400)
    found += [f"at 400: {part}" for part in browser.execute_script(TOO_WIDE)]
    for entry in browser.get_log("browser"):
        # The theme reports its own first visit as an error.
        if entry["level"] == "SEVERE" and "invalid theme mode" not in entry["message"]:
            found.append(entry["message"])
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme not in ("file", "data", "blob", "about"):
                found.append(f"asks for {url.geturl()}")
            elif url.scheme == "file" and not Path(unquote(url.path)).is_file():
                found.append(f"lacks {url.path}")
    return found


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture(scope="module")
def front_page():
    spec = spec_from_file_location("front_page", ROOT / "docs" / "front_page.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/index.rst"])
def test_the_first_page_has_the_numbers_of_the_results(page, front_page):
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    kept = {name: dict(points)[16] for name, points in front_page.kept().items()}
    default, trained, peft = kept["tsv, the default"], kept["trained, no task text"], kept["PEFT, its best (svd)"]
    for value in (default, trained, peft):
        assert f"{value:.3f}".removeprefix("0") in text
    ((theirs, ours),) = [(theirs, ours) for name, theirs, ours in front_page.seconds() if name == "svd"]
    assert f"{round(theirs / ours, -2):,.0f} times less CPU time" in text


def test_pictures_are_drawn_from_the_tables(front_page, tmp_path):
    pytest.importorskip("matplotlib")
    front_page.draw_kept(tmp_path / "kept.svg")
    front_page.draw_seconds(tmp_path / "seconds.svg")
    for name in ("kept.svg", "seconds.svg"):  # text is drawn as paths, of which matplotlib keeps it as a comment
        words = [re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))
                 for path in (tmp_path / name, ROOT / "docs" / "_static" / name)]  # fmt: skip
        assert words[0] == words[1], "run python docs/front_page.py"


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
