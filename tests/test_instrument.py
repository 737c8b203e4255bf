"""The model in the page, in headless Chromium: the package's numbers, a reader's way, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import site_tools
import torch
from selenium.webdriver.common.keys import Keys

from talking_heads_utils.asking import ask
from talking_heads_utils.models import load_model
from talking_heads_utils.prompts.ioi import build_ioi

SITE = os.environ.get("TALKING_HEADS_SITE")
MODEL = Path(SITE or ".") / "_static" / "model"
ABOUT = json.loads((MODEL / "model.json").read_text(encoding="utf-8")) if (MODEL / "model.json").is_file() else {}
FAILS = os.environ.get("TALKING_HEADS_NO_SKIP") and "could not be fetched" not in ABOUT.get("missing", "")
pytestmark = pytest.mark.skipif(
    not SITE or ("files" not in ABOUT and not FAILS),
    reason=ABOUT.get("missing", "needs a built site with its model: TALKING_HEADS_SITE=_build/html"),
)
on_one_page = pytest.mark.xdist_group("the model's page")  # it is loaded once
CHAPTER, PLACE = "notebooks/01_inhibition_heads.html", "instrument-inhibition"
MOVES = (
    [], [("L15H3.0", "set", 4.0)], [("L19H2.7", "scale", -2.0)], [("L20H0.0", "add", 5.0)], [("L3H4", "scale", 0.0)],
    [("L23H3", "scale", 0.0)], [("L0H0.0", "set", -3.0)], [("L29H1.5", "set", 10.0)],
    [("L15H3.0", "set", -6.0), ("L20H0.0", "scale", 0.0)], [("L12H7", "scale", 1.5), ("L19H2.7", "set", 2.0)],
    [("L23H3.1", "set", 3.0), ("L23H3.2", "set", -3.0), ("L23H3", "scale", 0.5)],
)  # fmt: skip


@pytest.fixture(scope="module")
def address():
    with site_tools.served(Path(SITE)) as address:
        yield address


@pytest.fixture(scope="module")
def page(address):
    """Chapter 1 with its model loaded."""
    with site_tools.browser(served=True) as driver:
        site_tools.resize(driver, site_tools.DESKTOP)
        driver.get(f"{address}/{CHAPTER}")
        load(driver)
        yield driver


def load_button(driver):
    return site_tools.wait_for(lambda: driver.find_elements("css selector", f"#{PLACE} button.load"))[0]


def load(driver, seconds=120):
    driver.execute_script("arguments[0].click()", load_button(driver))
    site_tools.wait_for(lambda: driver.find_elements("css selector", f"#{PLACE} .head tbody tr"), seconds)


def inside(driver, code):
    """What a promise of the page gives; ``i`` is the instrument."""
    return driver.execute_async_script(
        f"const done = arguments[0], i = window.bookInstruments['{PLACE}'];"
        f"(async () => {{ {code} }})().then((value) => done({{ value }}), (error) => done({{ error: `${{error}}` }}))"
    )


def text_of(driver, part):
    """Read within the page: what is drawn anew between finding it and asking it would be lost."""
    return driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", f"#{PLACE} {part}")


def answer(driver, text, moves):
    moves = [
        {**dict(zip(("layer", "head", "component"), map(int, name[1:].replace("H", ".").split(".")))), "how": how,
         "amount": amount} for name, how, amount in moves
    ]  # fmt: skip
    return inside(driver, f"return await i.raw({json.dumps(text)}, {json.dumps(moves)})")["value"]


def against_the_package(bridge, driver, text, moves):
    """Largest differences of logits and of attention, and whether the five likeliest tokens are the same."""
    given: dict[str, dict[str, float]] = {"set": {}, "scale": {}, "add": {}}
    for name, how, amount in moves:
        given[how][name] = amount
    ours, theirs = ask(bridge, text, **given), answer(driver, text, moves)
    logits, pattern = torch.tensor(theirs["logits"]), torch.tensor(theirs["pattern"])
    return (
        (logits - ours.logits).abs().max().item(),
        (pattern.view_as(ours.pattern) - ours.pattern).abs().max().item(),
        logits.topk(5).indices.tolist() == ours.logits.topk(5).indices.tolist(),
    )


@on_one_page
def test_the_page_gives_the_package_s_numbers(page):
    """Twenty prompts plain, and each with one of ten interventions: logits, attention and the five likeliest."""
    bridge = load_model("smollm2")
    texts = build_ioi(bridge.tokenizer, 20, seed=5).texts
    with torch.inference_mode():
        for n, text in enumerate(texts):
            for moves in ([], MOVES[1 + n % 10]):
                logits, pattern, same = against_the_package(bridge, page, text, moves)
                assert logits < 1e-2 and pattern < 1e-3 and same, (text, moves)


@on_one_page
def test_a_reader_moves_a_component_undoes_it_and_sends_it(page, address):
    page.execute_script("document.querySelector('#instrument-inhibition').scrollIntoView()")
    before = text_of(page, ".difference")
    page.find_element("css selector", f"#{PLACE} .head tbody input[type=range]").send_keys(Keys.HOME)
    site_tools.wait_for(lambda: "→" in text_of(page, ".difference"))
    assert page.find_elements("css selector", f"#{PLACE} .grid .moved")
    link, lines = inside(page, "return [i.link(), i.python()]")["value"]
    assert 'th.ask("smollm2"' in lines and "set={" in lines
    page.find_element("css selector", f"#{PLACE} .changes li button").click()
    site_tools.wait_for(lambda: text_of(page, ".difference") == before)
    page.get("about:blank")
    page.get(link)
    load(page)
    site_tools.wait_for(lambda: "→" in text_of(page, ".difference"))


@on_one_page
def test_heads_are_reached_by_keys_and_by_name(page):
    grid = page.find_element("css selector", f"#{PLACE} .grid [tabindex='0']")
    name = grid.get_attribute("data-head")
    grid.send_keys(Keys.ARROW_LEFT)
    active = page.switch_to.active_element
    assert active.get_attribute("data-head") not in (None, name) and "," in active.get_attribute("aria-label")
    active.send_keys(Keys.ENTER)
    opened = f"Head {active.get_attribute('data-head')}"
    site_tools.wait_for(lambda: opened in text_of(page, ".head h4"))


@on_one_page
def test_the_instrument_has_no_barriers_and_fits_a_phone(page):
    assert not site_tools.barriers(page, f"#{PLACE}")
    site_tools.resize(page, site_tools.PHONE)
    assert not site_tools.barriers(page, f"#{PLACE}")
    assert page.execute_script("return document.documentElement.scrollWidth") <= site_tools.PHONE[0]
    site_tools.resize(page, site_tools.DESKTOP)


@on_one_page
@pytest.mark.parametrize("text, answers, said", [
    ("  ", ["Mary", "John"], "The prompt is empty"),
    ("word " * 300, ["Mary", "John"], "this page runs at most 256"),
    ("Mary and John", ["Mary", "Johannesburgian"], "take a word that is one"),
    ("Mary and John", ["Mary", ""], "two different words"),
])  # fmt: skip
def test_what_cannot_be_run_is_told_in_a_sentence_and_the_page_lives_on(page, text, answers, said):
    good = ("When Mary and John went home, Mary spoke to", "John", "Mary")
    for typed, answered in (((text, *answers), said), (good, "tokens")):
        fields = f"[i.fields.text.value, i.fields.answer.value, i.fields.other.value] = {json.dumps(typed)};"
        assert answered in inside(page, fields + "await i.run(); return i.status.textContent")["value"]


@pytest.mark.parametrize("hurt, said", [("cut", "did not arrive"), ("changed", "arrived damaged"), ("gone", "404")])
def test_a_part_that_does_not_arrive_whole_is_named_and_fetched_again(tmp_path, hurt, said):
    """The button stands again, and with the part mended it goes on."""
    site = tmp_path / "site"
    shutil.copytree(SITE, site, copy_function=os.link)
    part = site / "_static" / "model" / "layer-07.bin"
    whole = part.read_bytes()
    part.unlink()
    if hurt == "cut":
        part.write_bytes(whole[:-100])
    elif hurt == "changed":
        part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with site_tools.served(site) as address, site_tools.browser(served=True) as driver:
        driver.get(f"{address}/{CHAPTER}")
        driver.execute_script("arguments[0].click()", load_button(driver))
        site_tools.wait_for(lambda: "layer-07.bin" in text_of(driver, "[role=status]"), 120)
        assert said in text_of(driver, "[role=status]") and load_button(driver).is_enabled()
        if hurt == "changed":
            part.write_bytes(whole)
            load(driver)


def test_nothing_is_fetched_before_a_reader_asks_nor_run_on_a_card_that_is_not_there(address):
    with site_tools.browser(served=True) as driver:
        driver.get(f"{address}/{CHAPTER}")
        offer = load_button(driver).text
        events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert not [url for url in asked if "/_static/model/" in url and not url.endswith("about.mjs")]
        size = sum((MODEL / name).stat().st_size for name in os.listdir(MODEL) if name.endswith((".bin", ".json")))
        (shown,) = [int(word) for word in offer.split("(")[1].split() if word.isdigit()]
        assert shown * 1e6 > size
        inside(driver, "i.card.checked = true; await i.load()")
        assert "no graphics card" in text_of(driver, "[role=status]") and load_button(driver).is_enabled()
