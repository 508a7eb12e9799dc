"""Is the effective number of sites a property of a fine-tune, or of its size?

The demo's own fine-tunes at several strengths (their adapters' scale multiplied), and changes whose spread is known: random low-rank noise in one
layer, and in all layers, each at two sizes 20 times apart in D. For each the effective number of sites by shares that add and by divergences, and
what `mechdiff compare` would say of two of them.

python benchmarks/spread.py                 the tables of docs/COMPARE.md (SmolLM2 from the demo's package; about ten minutes of one core)
python benchmarks/spread.py --tiny          the same of the tiny network that `mechdiff validate` uses: a minute, no model needed
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.comparison.contrasts import WORTH
from mechdiff.demo import DATA, embedded_model
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.overlap import overlap_nats, total_nats
from mechdiff.engine.replay import replay
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.measures.patching.formula import variants
from mechdiff.models.pair import Model, wrap
from mechdiff.statistics import spread
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
from mechdiff.validate import edits as validate_edits
from mechdiff.validate import made

KINDS = ("attn_out", "mlp_out")
STRENGTHS = {"arithmetic": (0.25, 1.0, 2.0, 4.0, 8.0), "kazakh": (0.12, 0.25, 0.5, 1.0), "courtesy": (0.25, 1.0)}
SIZES = (0.05, 1.0)
"""D of the known changes, in nats."""
N_PROMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What writing each site does, per prompt."""

    name: str
    d: float
    added: dict[str, np.ndarray]
    """Overlaps `[prompt, site]`, by the model that runs."""
    nats: dict[str, np.ndarray]
    """Breakage where the tuned model runs, recovery where the base runs."""
    total: np.ndarray

    def number(self, what: str, side: str) -> spread.Estimate:
        values = (self.added if what == "adds" else self.nats)[side]
        return spread.number_of_parts(values, [str(i) for i in range(len(values))])

    def said(self) -> str:
        """One row of the table."""
        cells = [_ends(self.number("adds", "base")), _ends(self.number("adds", "tuned"))]
        cells += [_ends(self.number("nats", "tuned")), _ends(self.number("nats", "base"))]
        return f"| {self.name} | {self.d:.3g} | {' | '.join(cells)} |"


def _ends(one: spread.Estimate) -> str:
    return f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]"


def measured(name: str, base: list[Clean], tuned: list[Clean], runs: dict[str, Model] | Callable[[str], Any]) -> Effects:
    """Every site of every block, written in both directions."""
    laws = {side: torch.stack([clean.logits for clean in cleans]) for side, cleans in (("base", base), ("tuned", tuned))}
    d = kl_nats(laws["tuned"], laws["base"])
    added, nats = {}, {}
    for side, own, other in (("base", base, tuned), ("tuned", tuned, base)):
        with runs(side) as model:  # type: ignore[operator]
            found = [_written(model, one, there) for one, there in zip(own, other, strict=True)]
        logits = torch.stack(found)
        theirs = laws["base" if side == "tuned" else "tuned"]
        added[side] = overlap_nats(logits, laws[side], theirs).numpy()
        kl = kl_nats(laws["tuned"][:, None], logits)
        nats[side] = (kl if side == "tuned" else d[:, None] - kl).numpy()
    return Effects(name=name, d=float(d.mean()), added=added, nats=nats, total=total_nats(laws["base"], laws["tuned"]).numpy())


def _written(model: Model, own: Clean, other: Clean) -> Tensor:
    layers = range(model.shape.n_layers)
    edits = [edit for kind in KINDS for edit in variants(kind, layers, {at: other.states[Site(at, kind)][-1:][None] for at in layers})]
    return replay(model, [own], edits)[0, 1:]


def cleans(model: Model, prompts: Sequence[Sequence[int]]) -> list[Clean]:
    sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in KINDS]
    return [capture(model, ids, sites, [len(ids) - 1], keep_cache=True) for ids in prompts]


# ---- fine-tunes at several strengths ------------------------------------------------------------------------------------------------


def opened(name: str) -> Any:
    """The pair of one embedded fine-tune with its report prompts."""
    prompts = {"report": str(DATA / "prompts" / f"{name}_report.jsonl"), "at_most": {"report": N_PROMPTS}}
    pair = {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / name)}
    return prepare(
        make_study({"pair": pair, "prompts": prompts, "measures": ["divergence"]}), RunOptions(device="cpu", memory="one"), EXPERIMENTS
    )


def at_strengths(name: str, strengths: Sequence[float]) -> Iterator[Effects]:
    """One adapter, its scale multiplied."""
    prepared = opened(name)
    pair, ids = prepared.pair, [list(one.ids_base) for one in prepared.rendered["report"].values()]
    with pair.use("base") as model:
        base = cleans(model, ids)
    with pair.use("tuned") as model:
        scaled = [module.scaling for module in model.net.modules() if isinstance(getattr(module, "scaling", None), dict)]
    usual = [dict(one) for one in scaled]
    for strength in strengths:
        for one, before in zip(scaled, usual, strict=True):
            one.update({key: value * strength for key, value in before.items()})
        with pair.use("tuned") as model:
            tuned = cleans(model, ids)
        yield measured(f"{name} x {strength:g}", base, tuned, pair.use)


# ---- changes whose spread is known --------------------------------------------------------------------------------------------------


class Held:
    """Two loaded networks, used as a pair is."""

    def __init__(self, base: Model, tuned: Model) -> None:
        self.models = {"base": base, "tuned": tuned}

    def __call__(self, side: str) -> Any:
        from contextlib import nullcontext

        return nullcontext(self.models[side])


def noised(net: Any, layers: Sequence[int], size: float, seed: int = 0) -> None:
    """Rank-4 noise of this relative size into every matrix of these layers."""
    with torch.no_grad():
        for layer in layers:
            matrices = [weight for weight in net.model.layers[layer].parameters() if weight.ndim == 2]
            for i, weight in enumerate(matrices):
                validate_edits.add_low_rank(weight, 4, size, seed=seed + 100 * layer + 2 * i)


def known(net: Any, prompts: Sequence[Sequence[int]], layers: Sequence[int], d: float, name: str) -> Effects:
    """The change of these layers whose D is about `d`: its size is found by halving an interval of logarithms."""
    base = wrap(net, side="base", ref="base")
    own = cleans(base, prompts)
    law = torch.stack([one.logits for one in own])
    low, high = 1e-3, 10.0
    for _ in range(9):
        size = (low * high) ** 0.5
        tuned = _changed(net, layers, size)
        there = torch.stack([capture(tuned, ids, [], [0]).logits for ids in prompts])
        found = float(kl_nats(there, law).mean())
        low, high = (size, high) if found < d else (low, size)
    return measured(name, own, cleans(tuned, prompts), Held(base, tuned))


def _changed(net: Any, layers: Sequence[int], size: float) -> Model:
    other = copy.deepcopy(net)
    noised(other, layers, size)
    return wrap(other, side="tuned", ref="tuned")


def of_known(net: Any, prompts: Sequence[Sequence[int]]) -> list[Effects]:
    n_layers = len(net.model.layers)
    places = {"one layer": [n_layers - 2], "all layers": list(range(n_layers))}
    return [known(net, prompts, layers, d, f"{name}, D {d:g}") for name, layers in places.items() for d in SIZES]


# ---- what is said -------------------------------------------------------------------------------------------------------------------


def verdict(one: Effects, other: Effects, what: str = "adds", side: str = "base") -> str:
    """By the rules of `mechdiff compare`: told apart, and by enough to speak of."""
    values = {each.name: (each.added if what == "adds" else each.nats)[side] for each in (one, other)}
    why = next((reason for of in values.values() if (reason := spread.silence(of))), "")
    if why:
        return f"nothing ({why})"
    here, there = one.number(what, side), other.number(what, side)
    found = spread.contrast(here, there)
    assert found is not None
    apart = found.p <= spread.WRONG and max(here.value, there.value) >= WORTH * min(here.value, there.value)
    more = one if here.value > there.value else other
    if apart:
        return f"{more.name} is more distributed (p {found.p:.2g})"
    return f"differ by less than a half (p {found.p:.2g})" if found.p <= spread.WRONG else f"not told apart (p {found.p:.2g})"


def shown(found: Sequence[Effects], held: Sequence[tuple[int, int]]) -> None:
    print(
        "| change | D, nats | shares that add, base runs | shares that add, tuned runs | KL, breakage | KL, recovery |\n|---|---|---|---|---|---|"
    )
    for one in found:
        print(one.said(), flush=True)
    print("\n| against | by shares that add | by KL, breakage | by KL, recovery |\n|---|---|---|---|")
    for i, j in held:
        ways = (verdict(found[i], found[j]), verdict(found[i], found[j], "nats", "tuned"), verdict(found[i], found[j], "nats"))
        print(f"| {found[i].name} and {found[j].name} | {' | '.join(ways)} |", flush=True)
    print()


CROSSED = [(0, 1), (2, 3), (0, 2), (0, 3), (1, 2), (1, 3)]
"""Of the known changes: each at both sizes; one layer against all at either size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", choices=[*STRENGTHS, "known"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.tiny:
        shown(of_known(made.tiny_net(0), made.token_prompts(N_PROMPTS, seed=1)), CROSSED)
        return
    for name, strengths in STRENGTHS.items():
        if asked.only in (None, name):
            found = list(at_strengths(name, strengths))
            shown(found, [(i, len(found) - 1) for i in range(len(found) - 1)])
    if asked.only in (None, "known"):
        prepared = opened("arithmetic")
        with prepared.pair.use("base") as model:
            net, ids = copy.deepcopy(model.net), [list(one.ids_base) for one in prepared.rendered["report"].values()]
        prepared.pair.release()
        shown(of_known(net, ids), CROSSED)


if __name__ == "__main__":
    main()
