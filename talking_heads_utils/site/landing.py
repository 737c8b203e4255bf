"""What the landing page says: findings with one number each, out of stored tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from talking_heads_utils import roles
from talking_heads_utils.experiments.claims import BY_ID, ClaimId
from talking_heads_utils.experiments.icl import measures
from talking_heads_utils.experiments.icl.backups import Who
from talking_heads_utils.experiments.icl.redundancy import OVER_TASKS, Set
from talking_heads_utils.experiments.inhibition import circuit
from talking_heads_utils.experiments.rules import ALPHA
from talking_heads_utils.experiments.verdicts import listed
from talking_heads_utils.site import scorecard
from talking_heads_utils.site.sentences import share
from talking_heads_utils.site.sources import COLAB
from talking_heads_utils.training import seeds

MODEL = "smollm2"
INHIBITS = "S-inhibition → name mover (Q)"


def _table(name: str, model: str = MODEL) -> pd.DataFrame:
    return scorecard.table_of(model, name)


def example() -> tuple[str, str]:
    """The prompt of the landing figure, and of how many prompts there is a mean."""
    table = _table("slider")
    one, mean = table[table["prompt"].eq(0).fillna(False)].iloc[0], table[table["prompt"].isna()].iloc[0]
    return one["text"], f"{mean['n']:,}"


def opening() -> str:
    """Three findings with one number each, and four ways on, as HTML."""
    gone, edit, joint = _removed(), _edit(), _joint()
    cards = [
        ("03_weight_editing.html#fig-removal", "All", "of the name movers' preference for the right name goes with "
         f"one component, {gone['component']}: {gone['share']:.0%}."),
        ("03_weight_editing.html#fig-edit-gains", f"{edit['gain']:+.0f} points", f"on lists of {edit['n_items']} by "
         f"rescaling {edit['edit'].count(',') + 1} whole heads. Other tasks pay."),
        ("04_icl_redundancy.html#fig-redundancy", f"{joint.value:.1f} times", "the sum of their single costs is what "
         f"{measures.N_JUDGED} heads cost together, in context."),
    ]  # fmt: skip
    found = "".join(f'<a class="finding" href="../notebooks/{place}"><b>{number}</b> {text}</a>'
                    for place, number, text in cards)  # fmt: skip
    notebook = f"{COLAB}/blob/main/notebooks/01_inhibition_heads.ipynb"
    ways = {
        "#five-minutes": "Read (5 minutes)", "instrument.html": "Try it live", notebook: "Run it (Colab)",
        "own_model.html": "Use it on your model",
    }  # fmt: skip
    links = "".join(f'<a class="way" href="{to}">{name}</a>' for to, name in ways.items())
    return f'<div class="findings">{found}</div><nav class="ways" aria-label="Ways into the book">{links}</nav>'


def _removed() -> Any:
    rows = _table("removal").query("task == 'ioi' and chosen_by == 'selection'")
    return rows.loc[rows["share"].idxmax()]


def _edit() -> Any:
    return _table("edit-gains").query("best and draw.isna() and part == 'held_out' and n_items == 6").iloc[0]


def _joint() -> measures.Measured:
    return measures.redundant(_table("sets"))


def hidden() -> str:
    """What is easily overlooked: a sentence and a number each, as Markdown."""
    links = _table("links", "gpt2-weights")
    into = links[links["link"] == INHIBITS]
    own = into[into["control"] == ""].iloc[0]
    others = into[into["control"].isin(["other readers", "other input"])].sort_values("value")
    shares = _table("backups")
    shares = shares[(shares["task"] == OVER_TASKS) & (shares["heads_are"] == Set.CHOSEN) & ~shares["alone"]]
    free, held = (shares[shares["who"] == who].iloc[0] for who in (Who.FINAL, Who.FINAL_HELD))
    runs = seeds.all_runs()
    without = [run for run in runs if run["model"] == "mini-free"]
    place = [run for run in runs if run["model"] == "mini-place"]
    strongest = [min(run["inhibition_heads"], key=lambda head: head["change"])["head"] for run in place]
    sizes = sorted({run["dimension"] for run in place})
    found = sum(bool(run["inhibition_heads"]) for run in without)
    return f"""
* **GPT-2's channel is specific.** What S-inhibition heads write stands at percentile {own["value"]:.0f} of what the
  name movers' queries read. For their keys and values, and for other readers, that is
  {others["value"].min():.0f} to {others["value"].max():.0f} ([chapter 1](#fig-links)).
* **Training without constraints showed no channel.** In {found} of {len(without)} toys that were free to do as they
  like was an inhibition head found. The test is weak there ([seeds](#seeds)).
* **Heads vary with the seed, the dimension does not.** The strongest inhibition heads of {len(place)} `mini-place` are
  {listed(strongest)}; each channel has {listed([str(size) for size in sizes])} dimensions ([seeds](#seeds)).
* **Rescaling looks like backup.** Measured along the changed run's own stream, other heads seem to recover
  {share(free)} of what is lost. With direction and scale held it is {share(held)} ([chapter 4](#fig-backups)).
"""


def how_sure() -> str:
    """What was found, and on how much it stands, as a Markdown table."""
    joint = _joint()
    together = (
        f"Together, {measures.N_JUDGED} heads cost {joint.value:.2f} [{joint.low:.2f}, {joint.high:.2f}] times the sum "
        "of what each costs alone",
        f"{joint.n} tasks, {joint.control:.2f} of sets matched on direct effect ([4](#fig-redundancy))",
    )
    lines = "\n".join(f"| {found} | {on} |" for found, on in (*_names(), *_lists(), together, *_weights()))
    return f"| found so far | how sure |\n|---|---|\n{lines}\n"


Line = tuple[str, str]


def _names() -> list[Line]:
    parts = _table("circuit")
    inhibit = parts[(parts["measure"] == circuit.EXCHANGE) & (parts["part"] == roles.S_INHIBITION)].iloc[0]
    gone = _removed()
    return [
        (f"{inhibit['heads']} inhibit S in SmolLM2's name movers: {inhibit['share']:.0%} of the change from clean to "
         "third-name prompts", f"{inhibit['n']} held-out prompts, {inhibit['n_sets']:.0f} matched sets, "
         f"p ≤ {inhibit['p']:.2f} ([models](#fig-exchanged-roles))"),
        (f"Without {gone['component']} in their queries, its name movers lose {share(gone, ends='share_')} of their "
         "preference for IO",
         f"{gone['n']} held-out prompts, {gone['n_draws']} matched components, p = {gone['p_holm']:.2f} "
         "([3](#fig-removal))"),
    ]  # fmt: skip


def _lists() -> list[Line]:
    gate = _table("gate").query("task == 'laundry' and order == 'all' and index == -1 and n_items == 6").iloc[0]
    three, gains = (BY_ID[claim].measure(_table(BY_ID[claim].experiment))
                    for claim in (ClaimId.THREE_DIMENSIONS, ClaimId.EDIT_GAINS))  # fmt: skip
    scales = _table("scales").query("subspace == 'chosen' and scale == 2 and n_items == 6").iloc[0]
    edit = _edit()
    return [
        (f"SmolLM2 does {gate['accuracy']:.0%} of lists of six; chance does {gate['chance']:.0%}",
         f"{gate['n']} lists of the gate ([models](#fig-gate))"),
        (f"Of what ten dimensions carry to another list, three carry {three.value:.0%} [{three.low:.0%}, "
         f"{three.high:.0%}]", f"{three.n} pairs of lists, {three.units['matched_triples']} matched triples, "
         f"p = {three.p:.2f} ([2](#fig-dimensions))"),
        (f"A wider cloud of points does not help lists of six: {scales['change']:+.1f} points "
         f"[{scales['change_low']:.1f}, {scales['change_high']:.1f}]",
         f"{scales['n']:,} held-out lists, blind to the answer ([2](#fig-scales))"),
        (f"An edit of whole heads ({edit['edit']}) gains {edit['gain']:+.1f} points [{edit['low']:.1f}, "
         f"{edit['high']:.1f}] on lists of six; single components gain next to nothing",
         f"{edit['n']:,} held-out lists, {gains.units['random_draws']} random draws of heads with the same search "
         "([3](#fig-edit-gains))"),
    ]  # fmt: skip


def _weights() -> list[Line]:
    links = _table("links", "gpt2-weights")
    own = links[links["control"] == ""]
    joint, single = own[own["link"] == "all links"].iloc[0], own[own["p_holm"].notna()]
    alone = single[single["p_holm"] < ALPHA]
    return [
        ("In GPT-2's weights the published writers stand out for their readers, all links together",
         f"p = {joint['p']:.5f} in {joint['n_draws']:,} draws of heads within layers ([1](#fig-links))"),
        (f"Alone, {len(alone)} of {len(single)} links do: {', '.join(alone['link'])}",
         f"p = {', '.join(f'{p:.3f}' for p in alone['p_holm'])}, corrected for {len(single)} links ([1](#fig-links))"),
    ]  # fmt: skip
