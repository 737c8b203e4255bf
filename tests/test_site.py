"""The built site in a real browser, opened from file:// as a reader without a server would.

Runs where TALKING_HEADS_SITE names a built site (`.ci/run` sets it after `make book`); there a missing browser is a
failure, not a skip.
"""

import ast
import json
import os
import re
from decimal import ROUND_HALF_UP, Decimal
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import site_tools
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from site_tools import DESKTOP, PHONE, resize, wait_for

from talking_heads_utils import roles
from talking_heads_utils.components import relative_gap
from talking_heads_utils.figures.style import KIND_READS, ROLE_COLOURS
from talking_heads_utils.files import data_dir
from talking_heads_utils.labels import Head
from talking_heads_utils.provenance import versions
from talking_heads_utils.scores.scores import load_shipped_scores

SITE = os.environ.get("TALKING_HEADS_SITE")
pytestmark = pytest.mark.skipif(not SITE, reason="needs a built site: TALKING_HEADS_SITE=_build/html after `make book`")
CHAPTER = "notebooks/01_inhibition_heads.html"
EXPLORER = "book/explorer.html"


@pytest.fixture(scope="module")
def driver():
    with site_tools.browser() as driver:
        yield driver


def open_page(driver, page, size=DESKTOP):
    """A page, freshly loaded: to another #fragment of the page that is shown, a browser would go without a request."""
    driver.get("about:blank")
    resize(driver, size)
    for log in ("browser", "performance"):
        driver.get_log(log)
    path, mark, fragment = page.partition("#")
    driver.get((Path(SITE).resolve() / path).as_uri() + mark + fragment)
    driver.execute_async_script("""
        const done = arguments[arguments.length - 1];
        const next = ([figure, ...others]) => {
            if (!figure) return done();
            (figure.closest('details:not([open])') ?? figure).scrollIntoView({block: 'center'});
            const wait = () => figure._fullLayout ? next(others) : setTimeout(wait, 10);
            wait();
        };
        next([...document.querySelectorAll('.plotly-graph-div')]);
    """)  # every figure drawn, one after the other


def pages():
    return site_tools.pages(Path(SITE or "."))


@pytest.mark.parametrize("page", pages())
def test_a_page_is_light_and_holds_few_scenes(page):
    """Gzipped, beyond what the site shares; browsers keep few WebGL scenes alive at once."""
    assert site_tools.weight(Path(SITE), page) < 1_200_000 and site_tools.scenes(Path(SITE), page) <= 4


def assert_it_fits_asks_no_other_host_and_makes_no_error(driver, size):
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert not [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and not [url for url in asked if not re.match(r"(file|data|blob|about|chrome):", url)]


@pytest.mark.parametrize("page", [page for page in pages() if "notebooks/" in page])
def test_every_figure_of_a_chapter_is_drawn_numbered_captioned_and_described(driver, page):
    """One leads, before the first section; the run time is that of the build's record."""
    open_page(driver, page)
    plots = driver.find_elements("css selector", ".plotly-graph-div")
    assert len(plots) >= 4
    for plot in plots:
        assert len(plot.get_attribute("aria-label")) > 60 and plot.get_attribute("role") == "group"
        caption = plot.find_element("xpath", "./ancestor::figure").find_element("tag name", "figcaption")
        caption, kinds = caption.get_attribute("textContent").strip(), "real (weights|model)|[Pp]lanted|trained here"
        assert re.match(r"Fig. \d", caption) and re.search(f"{kinds}|[Bb]uilt by hand", caption)
        drawn = "return arguments[0].querySelectorAll('.trace, .hm, .gl-container canvas').length"
        assert driver.execute_script(drawn, plot) > 0
    first, *rest = driver.find_elements("css selector", "article figure")
    above = "return Boolean(arguments[0].compareDocumentPosition(document.querySelector('article h2')) & 4)"
    assert "lead" in first.get_attribute("class") and driver.execute_script(above, first)
    assert rest and not any("lead" in figure.get_attribute("class") for figure in rest)
    ran = driver.find_element("xpath", "//article//h1/following::p[starts-with(., 'When this page was built')][1]").text
    seconds, cores = re.fullmatch(r"When this page was built it ran in (\d+) s on (\d+) cores? of .+", ran).groups()
    status = re.sub(r"<[^>]+>", " ", (Path(SITE) / "book/status.html").read_text(encoding="utf-8"))
    (recorded,) = re.findall(rf"{page.removesuffix('.html')}\s+[\d-]+ [\d:]+\s+cache\s+([\d.]+)", status)
    assert float(seconds) == pytest.approx(float(recorded), abs=0.6) and int(cores) >= 1


def test_flat_figures_load_a_part_of_plotly_and_one_in_space_the_whole(driver):
    """Where the build could fetch the part."""
    script = "return [...document.querySelectorAll('script[src*=\"/plotly-\"]')].map(s => s.src.split('/').pop())"
    text = (Path(SITE) / CHAPTER).read_text(encoding="utf-8")
    ((part, whole),) = re.findall(r'<script data-bundle="([^"]+)" data-whole="([^"]+)"', text)
    open_page(driver, CHAPTER)
    assert site_tools.scenes(Path(SITE), CHAPTER) == 0 and driver.execute_script(script) == [part]
    open_page(driver, "notebooks/02_positional_subspace.html")
    assert driver.execute_script(script) == list(dict.fromkeys([part, whole]))
    assert len(driver.find_elements("css selector", "[data-whole] .gl-container canvas")) > 0


@pytest.mark.parametrize("page", pages())
def test_every_figure_has_a_permanent_link_its_data_and_the_lines_that_made_it(page):
    text = (Path(SITE) / page).read_text(encoding="utf-8")
    figures = re.findall(r'<figure[^>]* id="(fig-[\w-]+)"(.*?)</figure>', text, re.S)
    assert len(figures) == text.count('class="plotly-graph-div"')
    for name, body in figures:
        (target,) = re.findall(r'<a href="([^"]*_data/[^"]+)" download>', body)
        path = (Path(SITE) / page).parent / target
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        assert path.stem == name and len(table) and path.stat().st_size <= 1_000_000 and f'href="#{name}"' in body
        (lines,) = re.findall(r"<details><summary>made by</summary>.*?<pre>(.*?)</pre>", body, re.S)
        assert isinstance(ast.parse(unescape(lines)).body[-1], ast.Expr)


def open_explorer(driver, view="", size=DESKTOP):
    """The explorer page, freshly loaded at a view such as #L8H10.1."""
    open_page(driver, f"{EXPLORER}{view}", size)
    wait_for(lambda: driver.find_elements("css selector", "#atlas[data-ready]"))


def rows(driver, title):
    """The cells of the table under the heading that starts so."""
    script = """
        const sections = [...document.querySelectorAll('#atlas section')];
        const section = sections.find(s => s.innerText.startsWith(arguments[0]));
        return [...section.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))
    """
    return driver.execute_script(script, title)


def look_for(driver, text):
    """What the search field is asked; the field."""
    search = driver.find_element("id", "atlas-search")
    search.clear()
    search.send_keys(text, Keys.ENTER)
    return search


def fixed(value, digits):
    """As JavaScript writes it: halves are rounded up."""
    return str(Decimal(float(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def view(driver):
    return driver.execute_script("return [location.hash, document.querySelector('.atlas-title').innerText]")


def shown(row, kind, reader):
    """A row of the scores' own table as the page writes it."""
    head = Head.parse(reader)
    chance, of = row["score"] / load_shipped_scores().null_rms, 12 * head.layer * 64
    numbers = [fixed(row["score"], 3), f"{fixed(chance, 1)}×", fixed(row["z"], 1), f"{row['rank']:,} of {of:,}"]
    return [row["writer"], reader, f"{kind} ({KIND_READS[kind]})", *numbers]


def test_the_explorer_page_shows_the_scores_of_the_package(driver):
    scores = load_shipped_scores()
    open_explorer(driver, "#L9H9&kind=Q&z=10")
    table = scores.table("L9H9", "Q")
    best = table[table["z"] >= 10].drop_duplicates(["writer_layer", "writer_head"])
    assert rows(driver, "L9H9 reads") == [shown(row, "Q", "L9H9") for _, row in best.iterrows()]
    S = scores.singular_values[9, 9].double()
    gap, share = relative_gap(S), S.square() / S.square().sum()
    later = [b.z[9, 9] for (kind, layer), b in scores.blocks.items() if kind == "Q" and layer > 9]
    inputs = sum(z.ge(10).sum(1) for z in later).tolist()
    assert rows(driver, "Components") == [
        [f"L9H9.{i}", fixed(S[i], 3), f"{fixed(100 * share[i], 1)}%", fixed(gap[i], 3), str(inputs[i])]
        for i in range(64)
    ]
    note = driver.find_element("css selector", ".atlas-note").text
    assert "real weights" in note and f"chance is {scores.null_rms:.3f}" in note and "512 random directions" in note


def test_a_component_of_the_explorer_page_has_its_own_readers(driver):
    scores = load_shipped_scores()
    open_explorer(driver, "#L8H10.1")
    expected = [
        (z, f"L{layer}H{head}", kind) for (kind, layer), block in scores.blocks.items() if layer > 8
        for head, z in enumerate(block.z[8, 10, 1].tolist()) if z >= 12
    ]  # fmt: skip
    written = rows(driver, "L8H10.1 writes")
    assert [(row[1], row[2][0]) for row in written] == [(reader, kind) for _, reader, kind in sorted(expected)[::-1]]
    for row in written[:3]:
        table = scores.table(row[1], row[2][0])
        assert row == shown(table[table["writer"] == "L8H10.1"].iloc[0], row[2][0], row[1])
    assert len(driver.find_elements("css selector", ".atlas-edge")) == len(written), "what the head reads is listed"
    assert rows(driver, "L8H10 reads")


def test_the_overview_of_the_explorer_page_counts_every_pair(driver):
    scores = load_shipped_scores()
    open_explorer(driver, "#kind=V&z=15")
    n = sum(int((block.z >= 15).any(2).sum()) for (kind, _), block in scores.blocks.items() if kind == "V")
    status = ("css selector", "#atlas [role=status]")
    assert driver.find_element(*status).text.startswith(f"{n} edges between heads at z of 15")
    open_explorer(driver, "#kind=V&z=3&rank=1")
    first = [scores.table(f"L{layer}H{head}", "V").iloc[0] for layer in range(1, 12) for head in range(12)]
    n = sum(row["z"] >= 3 for row in first)
    assert driver.find_element(*status).text.startswith(f"{n} edges")
    assert len(driver.find_elements("css selector", "#atlas [data-head]")) == 144
    fills = "return getComputedStyle(document.querySelector('[data-head=\"106\"] circle')).fill"
    red, green, blue = (int(ROLE_COLOURS[roles.S_INHIBITION][i : i + 2], 16) for i in (1, 3, 5))
    assert driver.execute_script(fills) == f"rgb({red}, {green}, {blue})"


def test_the_address_of_the_explorer_page_is_its_view(driver):
    """Click, search, keys and links change it; back and a fresh load bring the view again."""
    open_explorer(driver)
    click = "document.querySelector('[data-head=\"106\"] rect').dispatchEvent(new Event('click', {bubbles: true}))"
    driver.execute_script(click)
    assert view(driver) == ["#L8H10", "L8H10 (S-inhibition)"]
    look_for(driver, "l9h6.3")
    assert view(driver) == ["#L9H6.3", "L9H6.3 (name mover)"]
    driver.find_element("css selector", ".atlas-tables tbody a").click()
    assert view(driver)[0] == "#L9H6.0"
    wait_for(lambda: driver.execute_script("return document.activeElement.className") == "atlas-title")
    driver.execute_script(
        "const s = document.querySelector('#atlas input[type=range]'); s.value = 20;"
        "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'))"
    )
    assert view(driver)[0] == "#L9H6.0&z=20"
    driver.back()
    wait_for(lambda: view(driver)[0] == "#L9H6.3")
    driver.back()
    wait_for(lambda: view(driver) == ["#L8H10", "L8H10 (S-inhibition)"])
    driver.execute_script("document.querySelector('[data-head=\"106\"]').focus()")
    for key in (Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ENTER):
        driver.switch_to.active_element.send_keys(key)
    assert view(driver) == ["#L9H9", "L9H9 (name mover)"]
    cell = driver.switch_to.active_element
    assert cell.get_attribute("aria-label") == "L9H9, name mover" and cell.get_attribute("aria-selected") == "true"
    cell.send_keys(Keys.ESCAPE)
    assert view(driver)[1] == "All heads"


def test_the_explorer_page_shows_smollm2_by_the_numbers_of_the_book(driver):
    """Loaded when it is chosen; scores by another route, effects out of the tables; chooser, search and links work."""
    stored = data_dir() / "results" / "smollm2"
    table = {name: pd.read_parquet(stored / f"{name}.parquet") for name in ("prediction", "effects")}
    loaded = "return [...document.querySelectorAll('script[src*=\"atlas-\"]')].map(s => s.src.split('/').pop())"
    open_explorer(driver)
    assert view(driver) == ["#L8H10.1", "L8H10.1 (S-inhibition)"]
    assert driver.execute_script(loaded) == ["atlas-gpt2-small.js"]
    Select(driver.find_element("id", "atlas-model")).select_by_visible_text("SmolLM2 135M")
    wait_for(lambda: view(driver) == ["#smollm2:L20H0.0", "L20H0.0 (S-inhibition)"])
    assert driver.execute_script("return document.activeElement.id") == "atlas-model"
    effects = table["effects"].query("head == 'L20H0' and component == 0").set_index("mover")
    written = {row[1]: float(row[3]) for row in rows(driver, "L20H0.0 writes") if row[2].startswith("Q")}
    (at_0,) = table["prediction"].query("head == 'L20H0' and component == 0")["score_at_0"]
    assert sum(written[mover] for mover in effects.index) / len(effects) == pytest.approx(at_0, abs=1e-3)
    shown = {re.search(r"from (L\d+H\d+)", row[0])[1]: row for row in rows(driver, "What") if "removed" in row[0]}
    for mover, row in effects.iterrows():
        numbers = [float(part) for part in re.findall(r"[+-][\d.]+", shown[mover][1].replace("−", "-"))]
        assert numbers == pytest.approx([row["effect"], row["low"], row["high"]], abs=1e-3)
        assert shown[mover][2] == str(row["n"])
    for link in driver.find_elements("css selector", ".atlas-measured a.elsewhere"):
        page, _, anchor = link.get_attribute("href").partition("#")
        assert f'id="{anchor}"' in Path(unquote(urlsplit(page).path)).read_text(encoding="utf-8")
    look_for(driver, "l19h2.7")
    assert view(driver) == ["#smollm2:L19H2.7", "L19H2.7 (S-inhibition)"]
    driver.back()
    wait_for(lambda: view(driver)[0] == "#smollm2:L20H0.0")
    driver.back()
    wait_for(lambda: view(driver) == ["#L8H10.1", "L8H10.1 (S-inhibition)"])
    open_explorer(driver, "#smollm2:L19H2.7")
    assert view(driver)[1] == "L19H2.7 (S-inhibition)" and driver.execute_script(loaded) == ["atlas-smollm2.js"]
    open_explorer(driver, "#llama:L1H0")
    assert "no model “llama”" in driver.find_element("id", "atlas-error").text and view(driver)[0] == "#L8H10.1"


@pytest.mark.parametrize("model", ["gpt2-small", "smollm2"])
def test_each_models_scores_are_a_small_file_of_their_own(model):
    path = Path(SITE) / f"_static/atlas-{model}.js"
    assert path.stat().st_size < 1_500_000 and '"missing"' not in path.read_text(encoding="utf-8")[:200]


@pytest.mark.parametrize(
    "text, says", [("8.10", "write layer and head"), ("L12H0", "has no L12H0"), ("L1H1.64", "has no")]
)
def test_the_explorer_page_says_what_is_wrong_with_a_label(driver, text, says):
    open_explorer(driver, "#L8H10")
    search = look_for(driver, text)
    assert says in driver.find_element("id", "atlas-error").text and view(driver)[0] == "#L8H10"
    assert search.get_attribute("aria-invalid") == "true"


def test_heads_of_the_explorer_page_are_large_enough_to_touch(driver):
    open_explorer(driver, "", PHONE)
    assert min(driver.find_element("css selector", "[data-head] rect").rect[side] for side in ("width", "height")) >= 24


def test_dark_mode_reaches_the_figures(driver):
    """Text, error bars, the buttons, and the axes of a 3D scene, which no style sheet reaches."""
    open_page(driver, "notebooks/02_positional_subspace.html")
    script = """
        const ink = getComputedStyle(document.documentElement).getPropertyValue('--pst-color-text-base').trim();
        const drawn = [...document.querySelectorAll('.plotly-graph-div')];
        const layouts = drawn.map(div => div._fullLayout);
        const bar = drawn.flatMap(div => div._fullData).find(trace => trace.type === 'bar' && trace.error_y?.visible);
        const scene = layouts.find(layout => layout.scene).scene;
        return [ink, layouts.map(layout => layout.font.color), scene.xaxis.tickfont.color,
            getComputedStyle(document.querySelector('.plotly-graph-div .xtick text')).fill,
            bar.error_y.color]
    """
    fills = []
    for theme in ("light", "dark"):
        site_tools.set_theme(driver, theme)
        wait_for(lambda: {driver.execute_script(script)[0]} == set(driver.execute_script(script)[1]))
        ink, _, scene, fill, error = driver.execute_script(script)
        assert scene == error == ink
        fills.append(fill)
    assert fills[0] != fills[1]
    background = driver.execute_script("return document.querySelector('.plotly-graph-div .main-svg').style.background")
    assert "rgba(0, 0, 0, 0)" in background


@pytest.mark.parametrize("page", [page for page in pages() if "notebooks/" in page])
def test_every_control_of_a_figure_answers_to_keys(driver, page):
    """Plotly's own menus and sliders do not: none is left, and each that took its place changes what is drawn."""
    open_page(driver, page)
    driver.execute_script("document.querySelectorAll('article details').forEach(fold => { fold.open = true; })")
    assert not driver.find_elements("css selector", ".slider-container, .updatemenu-container")
    controls = driver.find_elements("css selector", ".figure-controls :is(select, input)")
    assert len(controls) >= 3
    script = """
        const div = arguments[0].closest('.figure-controls').nextElementSibling, title = div._fullLayout.title?.text;
        const drawn = t => [t.visible, t.x, t.y, t.z, t.marker?.color, t.selectedpoints];
        return title + JSON.stringify(div._fullData.map(drawn));
    """
    for control in controls:
        assert control.accessible_name
        before = driver.execute_script(script, control)
        at_end = control.tag_name == "input" and control.get_attribute("value") == control.get_attribute("max")
        key = Keys.ARROW_DOWN if control.tag_name == "select" else Keys.ARROW_LEFT if at_end else Keys.ARROW_RIGHT
        control.send_keys(key)
        wait_for(lambda control=control, before=before: driver.execute_script(script, control) != before)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop, light", "phone, dark"])
@pytest.mark.parametrize("page", [*pages(), f"{EXPLORER}#L8H10.1"])
def test_a_page_fits_asks_no_other_host_makes_no_error_and_has_no_barrier(driver, page, size):
    """And WCAG 2.2 A and AA, as far as a program can tell: axe-core's rules, figures drawn. A page is opened once."""
    open_page(driver, page, size)
    assert_it_fits_asks_no_other_host_and_makes_no_error(driver, size)
    site_tools.set_theme(driver, "light" if size == DESKTOP else "dark")
    assert not site_tools.barriers(driver)


def test_on_paper_all_figures_are_drawn_and_whole_in_the_light_and_nothing_is_folded(driver):
    """And the page is as before when it has been printed."""
    driver.get("about:blank")
    driver.get((Path(SITE).resolve() / "book/models.html").as_uri())
    site_tools.set_theme(driver, "dark")
    wait_for(lambda: driver.execute_script("return Boolean(window.Plotly)"))
    driver.execute_script("""
        window.seen = [];
        addEventListener('beforeprint', () => queueMicrotask(() => queueMicrotask(() => { window.seen = [
            document.documentElement.dataset.theme,
            [...document.querySelectorAll('.plotly-graph-div')].map(div => div._fullLayout?.width),
            document.querySelectorAll('article details:not([open], .figure-links details)').length,
        ]; })));
    """)
    assert driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    theme, widths, folded = driver.execute_script("return window.seen")
    assert theme == "light" and len(widths) >= 2 and set(widths) == {660} and folded == 0
    assert driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert driver.execute_script("return document.querySelectorAll('article details:not([open])').length")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    look = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    assert driver.execute_script(look, "figure", "breakInside") == "avoid"
    assert driver.execute_script(look, ".bd-sidebar-primary", "display") == "none"
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_term_tells_its_entry_to_pointer_and_keys(driver):
    """The first mention on a page, also in a notebook; the tip says what the glossary says, Escape closes it."""
    open_page(driver, "book/glossary.html")
    entries = driver.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('dl.glossary dt')].map(t => {"
        "let d = t; while (d.tagName == 'DT') d = d.nextElementSibling; return [t.id, d.innerText.trim()]}))"
    )
    assert len(entries) > 30 and all(len(text) > 30 for text in entries.values())
    for page in (CHAPTER, "book/method.html"):
        open_page(driver, page)
        terms = driver.find_elements("css selector", "a.term")
        targets = [term.get_attribute("href").partition("glossary.html#")[2] for term in terms]
        assert len(targets) >= 8 and len(set(targets)) == len(targets) and set(targets) <= set(entries)
        tip = driver.find_element("id", "term-tip")
        for term, target in list(zip(terms, targets))[:4]:
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", term)
            assert tip.is_displayed() and tip.text.split() == entries[target].split()
        terms[3].send_keys(Keys.ESCAPE)
        assert not tip.is_displayed()


def test_the_scorecard_fits_a_screen_and_a_cell_opens_what_it_stands_on(driver):
    """By key; a cell without a verdict says why, its rule stands a link away, and leads back."""
    open_page(driver, "book/scorecard.html")
    bottom = "return document.querySelector('table.claims').getBoundingClientRect().bottom"
    assert driver.execute_script(bottom) <= DESKTOP[1]
    entries = driver.find_elements("css selector", "details.claim")
    assert len(entries) > 20 and not any(entry.get_attribute("open") for entry in entries)
    cell = driver.find_element("css selector", ".claims td.not-judged.real a")
    assert re.search(r"\d+/\d+ \w+", cell.text)
    cell.send_keys(Keys.ENTER)
    line = driver.find_element("id", cell.get_attribute("href").partition("#")[2])
    wait_for(lambda: line.is_displayed())
    top = driver.execute_script("return arguments[0].getBoundingClientRect().top", line)
    assert "not judged" in line.text and 0 <= top < DESKTOP[1]
    rule = line.find_element("xpath", "..").find_element("css selector", "a[href^='rules.html']").get_attribute("href")
    open_page(driver, "book/" + rule.rpartition("/")[2])
    entry = driver.find_element("id", rule.partition("#")[2])
    assert entry.get_attribute("open")
    assert entry.find_element("css selector", "a[href^='scorecard.html#claim-']").is_displayed()


def test_a_tip_stays_on_a_narrow_page(driver):
    open_page(driver, "book/method.html", PHONE)
    tip = driver.find_element("id", "term-tip")
    for term in driver.find_elements("css selector", "a.term"):
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", term)
        place = tip.rect
        assert 0 <= place["x"] < place["x"] + place["width"] <= PHONE[0]


def test_the_status_page_lists_every_page_that_runs_and_its_versions(driver):
    open_page(driver, "book/status.html")
    text = " ".join(driver.find_element("css selector", "article").text.split())
    chapters = [page.removesuffix(".html") for page in pages() if page.startswith("notebooks/")]
    for page in [*chapters, "book/intro", "book/speed", "book/data"]:
        assert re.search(rf"{page}\s+[\d-]+ [\d:]+\s+cache\s+[\d.]+\s+ran", text), page
    for name, version in versions().items():
        assert f"{name} {version}" in text


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
