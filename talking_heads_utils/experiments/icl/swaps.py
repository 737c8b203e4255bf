"""Heads and MLPs at the values that they have in the twin's run: the one engine of this chapter.

What is done at ``end`` changes nothing before it, so keys and values of each run are computed once, and every set costs
one token through the layers. Sets that agree up to a layer share one run up to there. Where values are exchanged at all
positions every set costs the whole prompt, from the first layer that it changes. The other run's values are computed
anew for each block of prompts, and logits in blocks that are not kept: nothing large is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from talking_heads_utils import batches
from talking_heads_utils.errors import OptionError
from talking_heads_utils.experiments.icl.asked import Asked
from talking_heads_utils.experiments.icl.tasks import tasks
from talking_heads_utils.forward.engine import MLP_OUT, RESID_PRE, Change, Forward, Z, chained, prepare
from talking_heads_utils.labels import Head, Mlp
from talking_heads_utils.progress import follow
from talking_heads_utils.prompts.lists import HELD_OUT
from talking_heads_utils.prompts.questions import Numbers

if TYPE_CHECKING:
    from talking_heads_utils.experiments.context import Context

Part = Head | Mlp
POST_LAYER = 15 / 32  # of the depth: the layer whose input the post scores heads along
_NUMBERS = 2**24  # what the largest tensor of a block of prompts may hold
_ROWS = 256  # rows of logits at once


class Where(StrEnum):
    """Where values are exchanged."""

    END = "end"
    ALL = "all"


class Into(StrEnum):
    """Whose run goes on: the prompt's own, with the twin's values (noising), or the twin's with the prompt's
    (denoising)."""

    CLEAN = "clean"
    TWIN = "twin"


class How(StrEnum):
    """What stands in place of a value."""

    EXCHANGE = "exchange"  # the other run's
    ZERO = "zero"


@dataclass(frozen=True)
class Ready:
    """A task's prompts and twins, run once. Enough for exchanges at ``end`` and at all positions."""

    asked: Asked
    clean: Forward
    twin: Forward


class Said(NamedTuple):
    """What is said at the last token, by prompt and variant.

    log_odds: of the right answer against the whole vocabulary, nats. top: the most likely token. number: the most
    likely number, of tasks of numbers.
    """

    log_odds: Float[Tensor, "n *k"]
    top: Int[Tensor, "n *k"]
    number: Int[Tensor, "n *k"] | None = None

    def right(self, asked: Asked) -> Bool[Tensor, "n *k"]:
        """Whether the most likely token is the right answer."""
        return self.top == asked.right[: len(self.top)].to(self.top).view(-1, *[1] * (self.top.ndim - 1))

    def at(self, *variants: Any) -> Said:
        """Some variants, as an index picks them after the prompts'."""
        return Said(*(None if part is None else part[:, *variants] for part in self))  # type: ignore[arg-type]


class Direct(NamedTuple):
    """Direct effects at the last token on the logit of the right answer less that of the rival, which is the twin's
    most likely wrong answer. Logits, divided by the final norm's scale in the prompt's untouched run. Variant 0 is the
    untouched run. Biases count as everything that is written does; they are in every variant alike.

    heads: what each head writes. mlps: what each MLP writes. twin_heads, twin_mlps: the same in the twin's run.
    scale: each variant's own divisor. rival: its token.
    post: the post's yardstick: what each head below a layer (15 of 32, in proportion) writes along the stream that
    enters it, over that stream's scale, both of the changed run; 0 for other heads. post_frozen: both of the untouched.
    """

    heads: Float[Tensor, "n k_1 n_layers n_heads"]
    mlps: Float[Tensor, "n k_1 n_layers"]
    twin_heads: Float[Tensor, "n n_layers n_heads"]
    twin_mlps: Float[Tensor, "n n_layers"]
    scale: Float[Tensor, "n k_1"]
    rival: Int[Tensor, "n"]
    post: Float[Tensor, "n k_1 n_layers n_heads"]
    post_frozen: Float[Tensor, "n k_1 n_layers n_heads"]


class Grid(NamedTuple):
    """What B says with A's ``resid_pre`` of one layer at ``end``, from A's runs under several sets.

    own: of A under each set, ``[n, sets]``, by A's right answer. plain: of B as it is, ``[n]``, and patched: of B,
    ``[n, layers, sets]``, by B's.
    """

    own: Said
    plain: Said
    patched: Said


def ready(c: Context, asked: Asked) -> Ready:
    """Both runs. Raises what :func:`talking_heads_utils.forward.engine.prepare` does."""
    return Ready(asked, prepare(c.bridge, asked.prompts), prepare(c.bridge, asked.twins, check=False))


def every_ready(c: Context, n: int, half: str = HELD_OUT, *, seed: int = 0) -> Iterator[Ready]:
    """``n`` prompts of each task that the model can do, one task after the other; seed as of
    :meth:`~talking_heads_utils.experiments.icl.asked.Task.ask`."""
    for task in follow(tasks(c), "tasks"):
        yield ready(c, task.ask(c, n, half, seed=seed))


@torch.no_grad()
def exchanged(
    r: Ready, sets: Sequence[Sequence[Part]], *, into: Into = Into.CLEAN, where: Where = Where.END,
    how: How = How.EXCHANGE, rest: bool = False, n: int | None = None,
) -> Said:  # fmt: skip
    """Each set of heads and MLPs exchanged together; the empty set is the untouched run. rest: all heads but those of
    the set. n: of the first so many prompts alone.

    Raises :class:`OptionError` for no set, a head or an MLP that is not there, a set of all heads, an MLP with
    ``rest``, and prompts and twins of different length where values are exchanged at all positions.
    """
    run, other = (r.clean, r.twin) if into == Into.CLEAN else (r.twin, r.clean)
    plan, found = _plan(run, sets, rest), []
    if where == Where.ALL and not (r.clean.n_pos == r.twin.n_pos and torch.equal(r.clean.end, r.twin.end)):
        raise OptionError("Prompts and twins differ in length, so values have no partner at all positions: use 'end'.")
    at, given = (f.at_end() if where == Where.END else f.everywhere() for f in (run, other))
    for rows in _blocks(run, len(sets) * at.shape[1], n):
        change = plan.exchange(values(other, plan.needed, given, rows, how))
        x = run.plain(RESID_PRE, 0, at, rows)[:, None]
        final = run.run(x, at, change=change, rows=rows, only_end=True)[:, :, 0]
        found.append(_said(run, final, r.asked.right[rows], plan.which[-1], r.asked.numbers))
    return _joined(found)


@torch.no_grad()
def grid(
    r: Ready, sets: Sequence[Sequence[Part]], b: Forward, right: Int[Tensor, "n"], *, how: How = How.EXCHANGE
) -> Grid:
    """Patch A's ``resid_pre`` at ``end`` into B, every layer and every set at once. A is ``r.clean``, under each set at
    the last token; B is run as it is above the patch, and may be of another length. right: B's right answers.

    Sets that are still alike at a layer share its cell. Raises :class:`OptionError` for A and B of different number,
    and as :func:`exchanged` does.
    """
    a, plan, found = r.clean, _plan(r.clean, sets), []
    if len(a.end) != len(b.end):
        raise OptionError(f"A has {len(a.end)} prompts and B {len(b.end)}; each of A's is patched into one of B's.")
    sizes = torch.tensor([1, *(int(which.max()) + 1 for which in plan.which[:-1])])  # B as it is, and cells by layer
    cells = torch.stack([which + start for which, start in zip(plan.which, sizes.cumsum(0)[:-1])])
    for rows in _blocks(b, int(sizes.sum())):
        seen: dict[tuple[str, int], Tensor] = {}
        change = chained(
            _seeing(seen, RESID_PRE), plan.exchange(values(r.twin, plan.needed, r.twin.at_end(), rows, how))
        )
        own = a.run(a.resid[rows, None, None], a.at_end(), change=change, rows=rows)[:, :, 0]

        def join(site: str, layer: int, value: Tensor, seen: dict = seen) -> Tensor:
            return torch.cat([value, seen[site, layer]], 1) if site == RESID_PRE else value

        final = b.run(b.resid[rows, None, None], b.at_end(), change=join, rows=rows)[:, :, 0]
        said = _said(b, final, right[rows], torch.arange(final.shape[1]), r.asked.numbers)
        own_said = _said(a, own, r.asked.right[rows], plan.which[-1], r.asked.numbers)
        found.append((own_said, said.at(0), said.at(cells)))
    return Grid(*(_joined(parts) for parts in zip(*found)))


@torch.no_grad()
def direct(r: Ready, sets: Sequence[Sequence[Part]] = (), *, how: How = How.EXCHANGE) -> Direct:
    """Direct effects with nothing exchanged and with each set exchanged at the last token. Raises
    :class:`OptionError` as :func:`exchanged` does."""
    f, plan, at = r.clean, _plan(r.clean, [(), *sets]), r.twin.at_end()
    right, scale = r.asked.right.to(f.end.device), scale_of(f, f.final)
    rival = torch.cat([
        r.twin.logits(r.twin.final[rows]).scatter_(1, right[rows, None], -torch.inf).argmax(1)
        for rows in batches.blocks(len(right), _ROWS)
    ])  # fmt: skip
    along = f.norm.center((f.unembed[:, right] - f.unembed[:, rival]).T) / scale[:, None]
    every = {(site, layer) for layer in range(f.n_layers) for site in (Z, MLP_OUT)}
    found = []
    for rows in _blocks(f, len(sets) + 1):
        given, seen = values(r.twin, every, at, rows), dict[tuple[str, int], Tensor]()
        instead = given if how == How.EXCHANGE else values(r.twin, plan.needed, at, rows, how)
        change = chained(_seeing(seen, RESID_PRE), plan.exchange(instead), _seeing(seen, Z, MLP_OUT))
        final = f.run(f.resid[rows, None, None], f.at_end(), change=change, rows=rows)[:, plan.which[-1], 0]
        twin = {key: value[:, None] for key, value in given.items()}
        plain = [torch.zeros(1, dtype=torch.long)] * (f.n_layers + 1)
        heads, mlps = _effects(f, seen, along[rows], plan.which)
        twin_heads, twin_mlps = _effects(f, twin, along[rows], plain)
        top = min(max(1, round(POST_LAYER * f.n_layers)), f.n_layers - 1)
        post = written_along(f, seen[RESID_PRE, top][:, plan.which[top], 0],
                             [seen[Z, layer][:, plan.which[layer + 1], 0] for layer in range(top)])  # fmt: skip
        found.append((heads, mlps, twin_heads[:, 0], twin_mlps[:, 0], scale_of(f, final), rival[rows], *post))
    return Direct(*(torch.cat(parts).cpu() for parts in zip(*found)))


# --- sets as variants of one run ---


class _Step(NamedTuple):
    """The variants of one layer: which of those below each goes on from, and what is out in it."""

    before: Int[Tensor, "k"]
    heads: Bool[Tensor, "k n_heads"]
    mlp: Bool[Tensor, "k"]


@dataclass(frozen=True)
class _Plan:
    """Sets that agree so far, as one variant. which: before the first layer and after each, the variant of each set."""

    steps: list[_Step]
    which: list[Int[Tensor, "n_sets"]]

    @property
    def needed(self) -> set[tuple[str, int]]:
        """Where values are exchanged."""
        z = {(Z, layer) for layer, step in enumerate(self.steps) if step.heads.any()}
        return z | {(MLP_OUT, layer) for layer, step in enumerate(self.steps) if step.mlp.any()}

    def exchange(self, instead: Mapping[tuple[str, int], Tensor]) -> Change:
        """What puts values, one of each prompt or a zero, in the place of what is out."""

        def change(site: str, layer: int, value: Tensor) -> Tensor:
            step = self.steps[layer]
            if site == RESID_PRE:
                return value if len(step.before) == value.shape[1] else value[:, step.before]
            if (site, layer) not in instead:
                return value
            out = step.heads[:, None, :, None] if site == Z else step.mlp[:, None, None]
            return torch.where(out.to(value.device), instead[site, layer][:, None], value)

        return change


def _plan(f: Forward, sets: Sequence[Sequence[Part]], rest: bool = False) -> _Plan:
    heads, mlps = marked(f, sets, rest)
    steps, which = [], [torch.zeros(len(sets), dtype=torch.long)]
    for of_heads, of_mlp in zip(heads.unbind(1), mlps.unbind(1)):
        out = torch.cat([which[-1][:, None], of_heads, of_mlp[:, None]], 1)
        different, now = out.long().unique(dim=0, return_inverse=True)
        steps.append(_Step(different[:, 0], different[:, 1:-1] > 0, different[:, -1] > 0))
        which.append(now)
    return _Plan(steps, which)


def marked(f: Forward, sets: Sequence[Sequence[Part]], rest: bool = False) -> tuple[Tensor, Tensor]:
    """What each set takes out: ``[n_sets, n_layers, n_heads]`` and ``[n_sets, n_layers]``. Raises as
    :func:`exchanged` does."""
    heads = torch.zeros(len(sets), f.n_layers, f.n_heads, dtype=torch.bool)
    mlps = torch.zeros(len(sets), f.n_layers, dtype=torch.bool)
    if not len(sets):
        raise OptionError("No set is given: name one at least; the empty set is the untouched run.")
    for row, parts in enumerate(sets):
        for part in parts:
            if not (0 <= part.layer < f.n_layers and 0 <= getattr(part, "head", 0) < f.n_heads):
                raise OptionError(f"No {part}: there are {f.n_layers} layers of {f.n_heads} heads.")
            if isinstance(part, Head):
                heads[row, part.layer, part.head] = True
            elif rest or f.layers[part.layer].mlp is None:
                reason = "with rest=True a set names heads alone" if rest else f"layer {part.layer} has no MLP"
                raise OptionError(f"{part} cannot be exchanged: {reason}.")
            else:
                mlps[row, part.layer] = True
        if heads[row].all() and not rest:
            raise OptionError(f"Set {row} takes out every head: no example could be read. Leave some in.")
    return ~heads if rest else heads, mlps


def _blocks(f: Forward, per_prompt: int, n: int | None = None) -> Iterator[slice]:
    """Prompts, or the first ``n``, that are run at once, where each is run at so many places."""
    return batches.blocks(len(f.end[:n]), max(1, _NUMBERS // (f.width * max(per_prompt, f.n_layers))))


def values(
    f: Forward, needed: Collection[tuple[str, int]], at: Int[Tensor, "n q"], rows: slice, how: How = How.EXCHANGE
) -> dict[tuple[str, int], Tensor]:
    """What stands in place of values, ``[rows, q, ...]``: those of a plain run, computed anew, or a zero."""
    if how == How.ZERO or not needed:
        return {key: f.final.new_zeros(1, 1) if key[0] == MLP_OUT else f.final.new_zeros(1, 1, 1) for key in needed}
    stop, seen = 1 + max(layer for _, layer in needed), dict[tuple[str, int], Tensor]()
    x = f.plain(RESID_PRE, 0, at, rows)[:, None]
    f.run(x, at, change=_seeing(seen, Z, MLP_OUT), rows=rows, stop=stop, only_end=stop == f.n_layers)
    return {key: seen[key][:, 0] for key in needed if key in seen}


def _seeing(seen: dict[tuple[str, int], Tensor], *sites: str) -> Change:
    def look(site: str, layer: int, value: Tensor) -> Tensor:
        if site in sites:
            seen[site, layer] = value
        return value

    return look


# --- what is said, and direct effects ---


def _said(
    f: Forward, final: Float[Tensor, "n k d_model"], right: Int[Tensor, "n"], which: Int[Tensor, "n_sets"],
    numbers: Numbers | None,
) -> Said:  # fmt: skip
    """Of final streams, a block of logits at a time. which: the variant of each set."""
    n, k = final.shape[:2]
    wanted = right.to(final.device).repeat_interleave(k)[:, None]
    log_odds, top, read = [], [], []
    for rows in batches.blocks(n * k, _ROWS):
        logits = f.logits(final.flatten(0, 1)[rows])
        own = logits.gather(1, wanted[rows])
        top.append(logits.argmax(1))
        if numbers is not None:
            read.append(numbers.read(logits[:, numbers.ids]))
        log_odds.append(own[:, 0] - logits.scatter_(1, wanted[rows], -torch.inf).logsumexp(1))
    parts = (torch.cat(found).view(n, k).cpu() if found else None for found in (log_odds, top, read))
    return Said(*parts).at(which)  # type: ignore[arg-type]


def _joined(parts: Sequence[Said]) -> Said:
    """Of several blocks of prompts."""
    return Said(*(None if part[0] is None else torch.cat(part) for part in zip(*parts)))  # type: ignore[arg-type]


def scale_of(f: Forward, stream: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n"]:
    """The divisor of a norm that reads this stream."""
    return f.norm.scale(f.norm.center(stream).square().sum(-1), stream.shape[-1])


def _effects(
    f: Forward, seen: Mapping[tuple[str, int], Tensor], along: Float[Tensor, "n d_model"], which: Sequence[Tensor]
) -> tuple[Float[Tensor, "n k n_layers n_heads"], Float[Tensor, "n k n_layers"]]:
    """What heads and MLPs write along a direction of each prompt."""
    heads, mlps = [], []
    for layer, now in enumerate(which[1:]):
        z, mlp = seen[Z, layer][:, :, 0], seen.get((MLP_OUT, layer))
        read = torch.einsum("hdm,nm->nhd", f.layers[layer].attention.W_O, along)
        heads.append((z * read[:, None]).sum(-1)[:, now])
        mlps.append(heads[-1][..., 0] * 0 if mlp is None else (mlp[:, :, 0] * along[:, None]).sum(-1)[:, now])
    return torch.stack(heads, 2), torch.stack(mlps, 2)


def written_along(
    f: Forward, stream: Float[Tensor, "n k d_model"], z: Sequence[Float[Tensor, "n k n_heads d_head"]]
) -> list[Float[Tensor, "n k n_layers n_heads"]]:
    """What each head writes along a stream over that stream's scale: both of the same variant, and both of variant 0,
    which is the untouched run. z: of the lowest layers; heads of others have 0."""
    own, found = f.norm.center(stream) / scale_of(f, stream)[..., None], []
    for along in (own, own[:, :1]):
        found.append(own.new_zeros(*own.shape[:2], f.n_layers, f.n_heads))
        for layer, at in enumerate(z):
            read = torch.einsum("hdm,nkm->nkhd", f.layers[layer].attention.W_O, along)
            found[-1][:, :, layer] = (at * read).sum(-1)
    return found
