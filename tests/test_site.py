"""The built site in a real browser, opened from file:// as a reader without a server would.

Runs where TALKING_HEADS_SITE names a built site (`.ci/run` sets it after `make book`); there a missing browser is a
failure, not a skip.
"""

import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from talking_heads_utils.scores import load_shipped_scores

SITE = os.environ.get("TALKING_HEADS_SITE")
pytestmark = pytest.mark.skipif(not SITE, reason="needs a built site: TALKING_HEADS_SITE=_build/html after `make book`")
CHAPTER = "notebooks/01_inhibition_heads.html"
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    profile = tempfile.mkdtemp(prefix="site-test-")
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Network.enable", {})
    yield browser
    browser.quit()
    shutil.rmtree(profile, ignore_errors=True)


def wait_for(condition, seconds=30):
    end = time.time() + seconds
    while time.time() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("the page did not get there in time")


def open_page(driver, page, size=DESKTOP):
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
    )
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get((Path(SITE).resolve() / page).as_uri())
    for figure in driver.find_elements("css selector", ".plotly-graph-div"):
        driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", figure)
        wait_for(lambda figure=figure: driver.execute_script("return Boolean(arguments[0]._fullLayout)", figure))


def pages():
    root = Path(SITE or ".")
    return [
        str(p.relative_to(root)) for folder in ("book", "notebooks") for p in sorted((root / folder).glob("*.html"))
    ]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("page", pages())
def test_pages_fit_ask_no_other_host_and_make_no_error(driver, page, size):
    open_page(driver, page, size)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert not [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not re.match(r"(file|data|blob|about|chrome):", url)]


@pytest.mark.parametrize(("page", "n"), [(CHAPTER, 11), ("notebooks/02_positional_subspace.html", 6)])
def test_every_figure_is_drawn_numbered_captioned_and_described(driver, page, n):
    open_page(driver, page)
    plots = driver.find_elements("css selector", ".plotly-graph-div")
    assert len(plots) == n
    for plot in plots:
        assert len(plot.get_attribute("aria-label")) > 60 and plot.get_attribute("role") == "img"
        figure = plot.find_element("xpath", "./ancestor::figure")
        caption = figure.find_element("tag name", "figcaption").text
        assert re.match(r"Fig. \d", caption) and re.search("real weights|[Pp]lanted|trained here", caption)
        assert (
            driver.execute_script(
                "return arguments[0].querySelectorAll('.trace, .hm, .gl-container canvas').length", plot
            )
            > 0
        )


def explorer(driver):
    plot = driver.find_elements("css selector", ".plotly-graph-div")[5]
    return plot, plot.find_element("xpath", "./preceding-sibling::div[@class='figure-controls']").find_elements(
        "tag name", "select"
    )


@pytest.mark.parametrize(("layer", "head", "kind"), [(5, 5, "K"), (11, 8, "V"), (1, 0, "Q")])
def test_the_explorer_shows_the_reader_that_was_chosen(driver, layer, head, kind):
    """From file://, the data of a layer fetched on demand, against the shipped scores."""
    if not driver.current_url.endswith(CHAPTER):
        open_page(driver, CHAPTER)
    plot, menus = explorer(driver)
    for menu, value in zip(menus, (layer, head, kind), strict=True):
        driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))", menu, str(value)
        )
    title = f"What L{layer}H{head} reads into its {dict(Q='query', K='key', V='value')[kind]}"
    wait_for(lambda: driver.execute_script("return arguments[0]._fullLayout.title.text", plot).startswith(title))
    table = load_shipped_scores().table(f"L{layer}H{head}", kind)
    wait_for(
        lambda: (
            driver.execute_script("return Array.from(arguments[0]._fullData[0].x)", plot) == list(table["writer"][:12])
        )
    )
    cells = driver.execute_script("return arguments[0].data[1].z.map(row => Array.from(row))", plot)
    assert len(cells) == 11 * 12 and all(value is None for row in cells[layer * 12 :] for value in row)
    top = table.iloc[0]
    shown = cells[top["writer_layer"] * 12 + top["writer_head"]][top["component"]]
    assert shown == pytest.approx(top["score"], rel=0.01)
    chosen = table[(table["writer_layer"] == 0) & (table["writer_head"] == 3)].set_index("component")["score"]
    assert cells[3] == pytest.approx(list(chosen.sort_index()), abs=float(table["score"].max()) / 200)


def test_dark_mode_reaches_the_figures(driver):
    open_page(driver, CHAPTER)
    colour = "return getComputedStyle(document.querySelector('.plotly-graph-div .xtick text')).fill"
    light = driver.execute_script(f"document.documentElement.dataset.theme = 'light'; {colour}")
    dark = driver.execute_script(f"document.documentElement.dataset.theme = 'dark'; {colour}")
    assert light != dark
    background = driver.execute_script("return document.querySelector('.plotly-graph-div .main-svg').style.background")
    assert "rgba(0, 0, 0, 0)" in background


def test_links_within_the_site_lead_somewhere(driver):
    """Pages, files and anchors that the site's own pages name."""
    root = Path(SITE)
    for page in pages():
        html = (root / page).read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"]+)"', html):
            if re.match(r"[a-z]+:|#$|//", target):
                continue
            path, _, anchor = target.partition("#")
            path = (root / page).parent / path.partition("?")[0] if path else root / page
            assert path.exists(), f"{page} links to {target}"
            if anchor and path.suffix == ".html":
                assert f'id="{anchor}"' in path.read_text(encoding="utf-8"), f"{page} links to {target}"


def test_search_maths_bibliography_and_colab_are_there():
    chapter = (Path(SITE) / CHAPTER).read_text(encoding="utf-8")
    assert "colab.research.google.com/github/talking-heads-book/talking-heads/blob/main/notebooks/01_" in chapter
    assert 'class="math' in chapter and (Path(SITE) / "searchindex.js").exists()
    references = (Path(SITE) / "book/references.html").read_text(encoding="utf-8")
    assert "Merullo" in references and "Elhage" in references
