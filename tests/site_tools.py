"""The built site in headless Chromium: what the tests share, and the landing page's figure for the README:

    python tests/site_tools.py _build/html book/_static/landing.png

Needs what the test extra installs, a Chromium and its chromedriver. No host is asked.
"""

from __future__ import annotations

import gzip
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PHONE, DESKTOP = (390, 844), (1280, 900)
SCENE = '"type":"scatter3d"'
SHARED = re.compile(r"_static/(?!atlas-)")  # theme, plotly and scripts, which load once per site
SCRIPT_SECONDS = 180  # that a page's check for barriers may take: long tables on a busy machine take over 30
NO_CARD = ("--disable-gpu",)
CARD = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site's address while it is served from this machine: a model runs in no page that is opened from a disk."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser(served: bool = False, card: bool = False) -> Iterator:
    """A Chromium that can reach no host, but for this machine's own if a site is served from it.

    card: it lends pages a graphics card, which the processor plays, some hundred times more slowly.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    profile = tempfile.mkdtemp(prefix="site-test-")
    for argument in (
        *(CARD if card else NO_CARD), "--headless", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * ~NOTFOUND" + (", EXCLUDE 127.0.0.1" if served else ""),
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.set_script_timeout(SCRIPT_SECONDS)
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def resize(driver, size: tuple[int, int], scale: float = 1) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": size == PHONE},
    )


def set_theme(driver, theme: str) -> None:
    driver.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)


def wait_for(condition, seconds: float = 30):
    end = time.time() + seconds
    while time.time() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("the page did not get there in time")


def barriers(driver, within: str = "html") -> list[tuple[str, list[str]]]:
    """What axe-core finds against WCAG 2.2 A and AA within an element."""
    import axe_playwright_python

    driver.execute_script((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(arguments[0], {runOnly: arguments[1], resultTypes: ['violations']}).then(done)",
        within,
        ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"],
    )
    assert found["passes"], "axe looked at nothing"
    return [(v["id"], node["target"]) for v in found["violations"] for node in v["nodes"]]


def pages(site: Path) -> list[str]:
    return [str(p.relative_to(site)) for part in ("book", "notebooks") for p in sorted((site / part).glob("*.html"))]


def weight(site: Path, page: str) -> int:
    """Gzipped bytes of a page beyond what the site shares: itself, and the scripts and pictures that are its own."""
    html = (site / page).read_bytes()
    own = {src for src in re.findall(r'(?:src|data-source)="([^":]+)"', html.decode()) if not SHARED.search(src)}
    files = [(site / page).parent / src.partition("?")[0] for src in own]
    return len(gzip.compress(html)) + sum(len(gzip.compress(path.read_bytes())) for path in files if path.is_file())


def scenes(site: Path, page: str) -> int:
    """Figures of a page that hold a 3D scene."""
    figures = r'<script type="application/vnd.plotly[^>]*>(.*?)</script>'
    return sum(SCENE in figure for figure in re.findall(figures, (site / page).read_text(encoding="utf-8")))


def picture(site: Path, out: Path) -> None:
    with browser() as driver:
        resize(driver, (900, 1000), scale=1.5)
        driver.get((site / "book/intro.html").as_uri())
        set_theme(driver, "light")
        figure = driver.find_element("id", "fig-landing")
        wait_for(lambda: figure.find_elements("css selector", ".plot-container .main-svg"))
        time.sleep(1)  # fonts and layout
        figure.screenshot(str(out))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    picture(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
