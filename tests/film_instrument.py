"""A film strip of the model in the page, for those who do not load it:

    python tests/film_instrument.py _build/html book/_static/instrument.webp

Needs what the test extra installs, a Chromium and its chromedriver. No host is asked.
"""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path

import site_tools
from selenium.webdriver.common.keys import Keys
from test_instrument import CHAPTER, PLACE, load, text_of

ASKED, OPENED = ("asks", "finder"), ("head", "wide")  # from the first of these to the last
STYLE = """<!doctype html><style>
 body { margin: 0; padding: 8px; width: max-content; display: flex; gap: 20px }
 body { background: white; font: 15px sans-serif }
 figure { margin: 0; width: 540px } figure:last-child { width: 225px }
 figcaption { margin-bottom: 6px } img { width: 100%; border: 1px solid #bbb }
</style>"""
FRAME = '<figure><figcaption>{}</figcaption><img src="data:image/png;base64,{}"></figure>'
BOX = """const whole = document.getElementById(arguments[0]), all = whole.getBoundingClientRect();
const [a, b] = arguments[1].map((name) => whole.querySelector(`.${name}`).getBoundingClientRect());
return { x: all.x + scrollX, y: a.top + scrollY - 4, width: all.width, height: b.bottom - a.top + 8, scale: 1 };"""


def clip(driver, parts: tuple[str, str]) -> str:
    """The instrument from one part to another as a picture, in base64."""
    driver.execute_script("document.getElementById(arguments[0]).scrollIntoView({ behavior: 'instant' })", PLACE)
    time.sleep(2)  # what is drawn as it nears the window moves what lies below it
    box = driver.execute_script(BOX, PLACE, parts)
    return driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": box})["data"]


def film(site: Path, out: Path) -> None:
    with site_tools.served(site) as address, site_tools.browser(served=True) as driver:
        site_tools.resize(driver, (1000, 2500), scale=1.5)  # so high that no picture needs to be scrolled
        driver.get(f"{address}/{CHAPTER}")
        site_tools.set_theme(driver, "light")
        driver.execute_script("document.querySelectorAll('header, .skip-link').forEach((bar) => bar.remove())")
        load(driver)
        frames = [("1. A prompt, its tokens, what comes next, and every head's effect.", clip(driver, ASKED))]
        frames += [("2. A head opened: where it looks, and what it writes.", clip(driver, OPENED))]
        driver.find_element("css selector", f"#{PLACE} .head tbody input[type=range]").send_keys(Keys.END)
        site_tools.wait_for(lambda: "→" in text_of(driver, ".difference"))
        frames += [("3. One component moved.", clip(driver, OPENED))]
        frames += [("4. The answer has moved with it.", clip(driver, ASKED))]
        site_tools.resize(driver, (site_tools.PHONE[0], 2500), scale=2)
        frames += [("5. The same on a phone.", clip(driver, ASKED))]
        driver.get("about:blank")
        site_tools.resize(driver, (2600, 900))
        figures = [FRAME.format(text, data) for text, data in frames]
        driver.execute_script("document.write(arguments[0]); document.close()", STYLE + "".join(figures))
        size = driver.execute_script("return { width: document.body.offsetWidth, height: document.body.offsetHeight }")
        shot = {"format": "webp", "quality": 80, "clip": size | {"x": 0, "y": 0, "scale": 1}}
        out.write_bytes(base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    film(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
