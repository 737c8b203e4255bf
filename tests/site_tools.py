"""The built site in headless Chromium: what the tests share, and two things a person asks for.

    python tests/site_tools.py table _build/html                             what every page weighs
    python tests/site_tools.py picture _build/html book/_static/landing.png  the landing page's figure, for the README

Needs what the test extra installs, a Chromium and its chromedriver. No host is asked.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPEATS = 3
PHONE, DESKTOP = (390, 844), (1280, 900)
SCENE = '"type":"scatter3d"'
SHARED = re.compile(r"_static/(?!frames/|atlas-)")  # theme, plotly and scripts, which load once per site


@contextmanager
def browser() -> Iterator:
    """A Chromium that can reach no host."""
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
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def resize(driver, size: tuple[int, int], scale: float = 1) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": size == PHONE},
    )


def wait_for(condition, seconds: float = 30):
    end = time.time() + seconds
    while time.time() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("the page did not get there in time")


def pages(site: Path) -> list[str]:
    return [
        str(p.relative_to(site)) for folder in ("book", "notebooks") for p in sorted((site / folder).glob("*.html"))
    ]


def weight(site: Path, page: str) -> int:
    """Gzipped bytes of a page beyond what the site shares: itself, and the scripts and pictures that are its own."""
    html = (site / page).read_bytes()
    own = {src for src in re.findall(r'(?:src|data-source)="([^":]+)"', html.decode()) if not SHARED.search(src)}
    files = [(site / page).parent / src.partition("?")[0] for src in own]
    return len(gzip.compress(html)) + sum(len(gzip.compress(path.read_bytes())) for path in files if path.is_file())


def scenes(site: Path, page: str) -> int:
    """Figures of a page that hold a 3D scene."""
    html = (site / page).read_text(encoding="utf-8")
    return sum(
        SCENE in figure for figure in re.findall(r'<script type="application/vnd.plotly[^>]*>(.*?)</script>', html)
    )


def first_figure(driver, address: str) -> float | None:
    """Seconds from opening an address, with a cold cache, to its first figure drawn; None where it has none."""
    watch = """
        const look = () => document.querySelector('.plotly-graph-div .plot-container .main-svg, #atlas svg')
            ? window.firstFigure = performance.now() / 1000 : requestAnimationFrame(look);
        requestAnimationFrame(look);
    """
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
    driver.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    try:
        driver.get(address)
        if not driver.find_elements("css selector", ".plotly-graph-div, #atlas"):
            return None
        driver.execute_script("(document.querySelector('.plotly-graph-div') ?? document.body).scrollIntoView()")
        return wait_for(lambda: driver.execute_script("return window.firstFigure"))
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def opened_fresh(site: Path, page: str) -> float | None:
    """The median of :func:`first_figure` over new browsers."""
    times = []
    for _ in range(REPEATS):
        with browser() as driver:
            resize(driver, DESKTOP)
            times.append(first_figure(driver, (site / page).as_uri()))
    return None if None in times else statistics.median(times)


def table(site: Path) -> None:
    print("| page | kB gzipped beyond theme and plotly | 3D scenes | first figure, s |\n|---|---|---|---|")
    for page in pages(site):
        seconds = opened_fresh(site, page)
        shown = "none" if seconds is None else f"{seconds:.1f}"
        print(f"| {page} | {weight(site, page) / 1000:,.0f} | {scenes(site, page)} | {shown} |", flush=True)
    print(f"\nMedian of {REPEATS} new browsers each; load of the machine at the end: {os.getloadavg()[0]:.1f}")


def picture(site: Path, out: Path) -> None:
    with browser() as driver:
        resize(driver, (900, 1000), scale=1.5)
        driver.get((site / "book/intro.html").as_uri())
        driver.execute_script("document.documentElement.dataset.theme = 'light'")
        figure = driver.find_element("id", "fig-landing")
        wait_for(lambda: figure.find_elements("css selector", ".plot-container .main-svg"))
        time.sleep(1)  # fonts and layout
        figure.screenshot(str(out))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["table", site]:
            table(Path(site).resolve())
        case ["picture", site, out]:
            picture(Path(site).resolve(), Path(out))
        case _:
            sys.exit(__doc__)
