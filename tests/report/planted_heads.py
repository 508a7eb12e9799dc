"""Rows of the measure `heads` with a planted truth: at the changed layer the heads' effects are squares of sums, and head 3 has most of them.

No model is involved. Each head moves the law along a direction of its own; v of a set is the squared length of the sum, scaled to `WHOLE` of D
on each prompt. Heads 1 and 2 move it in opposite directions, so that they cancel. At the other layers nothing happens.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import polars as pl

from mechdiff.rows import rows
from report.planted_sections import d_of

N_HEADS, PER_GROUP, WHOLE, TOP = 6, 2, 0.8, 3
METRICS = {"tuned<-base": "kl_own_nats", "base<-tuned": "kl_other_nats"}
WAYS = {"tuned<-base": "fisher_nats", "base<-tuned": "fisher_overlap_nats"}
DIRECTIONS = np.zeros((N_HEADS, 4))
DIRECTIONS[:, 0] = 0.1, 0.0, 0.0, 0.8, 0.1, 0.1
DIRECTIONS[1, 1], DIRECTIONS[2, 1] = 0.3, -0.3


def v(heads: Iterable[int]) -> float:
    """As a share of v(all)."""
    return float((DIRECTIONS[sorted(heads)].sum(0) ** 2).sum() / (DIRECTIONS.sum(0) ** 2).sum())


def shapley() -> np.ndarray:
    """Of each head, as a share of v(all): with v quadratic, its inner product with the sum."""
    return DIRECTIONS @ DIRECTIONS.sum(0) / (DIRECTIONS.sum(0) ** 2).sum()


def way(heads: Iterable[int]) -> float:
    """How far a set moves the law the way that all heads do, as a share: it adds."""
    return float(shapley()[sorted(heads)].sum())


def unit(heads: Iterable[int]) -> str:
    chosen = sorted(heads)
    return "all" if len(chosen) == N_HEADS else f"head {chosen[0]}" if len(chosen) == 1 else f"heads {','.join(map(str, chosen))}"


def planted_heads(table: pl.DataFrame, *, n_layers: int, changed: int, whole: float = WHOLE, seed: int = 12) -> pl.DataFrame:
    """Rows to add to a planted run; with `whole` 0 the heads of the changed layer have no effect together."""
    prompts, d = d_of(table, "report")
    spread = np.random.default_rng(seed).uniform(0.8, 1.2, len(prompts))
    parts: list[pl.DataFrame] = []
    everyone = range(N_HEADS)
    sets = [one for k in range(1, N_HEADS + 1) for one in combinations(everyone, k)]

    def add(values: np.ndarray, **named: object) -> None:
        parts.append(
            rows(values, measure="heads", split="report", prompt=prompts, **({"arm": "contribution", "site": "attn_proj"} | named))
        )

    for direction, metric in METRICS.items():

        def effect(share: float, metric: str = metric) -> np.ndarray:
            nats = whole * share * d * spread
            return nats if metric == "kl_own_nats" else d - nats

        at = {"direction": direction, "metric": metric}
        for layer in range(n_layers):
            for one in sets if layer == changed else [*((head,) for head in everyone), tuple(everyone)]:
                add(effect(v(one) if layer == changed else 0.0), layer=layer, unit=unit(one), **at)
                if layer == changed:
                    add(whole * way(one) * d * spread, layer=layer, unit=unit(one), **at | {"metric": WAYS[direction]})
            add(effect(0.2 if layer == changed + 1 else 0.0), layer=layer, **at | {"site": "mlp_out"})
        for group in range(N_HEADS // PER_GROUP):
            add(effect(v(range(group * PER_GROUP, (group + 1) * PER_GROUP))), layer=changed, unit=f"group {group}", **at)
        for head in everyone:
            here = {"layer": changed, "direction": direction, "unit": f"head {head}"}
            add(whole * shapley()[head] * d * spread, metric="shapley_nats", **here)
            add(effect(v([head])), arm="write", metric=metric, **here)
        add(effect(1.0), arm="write", unit="all", layer=changed, **at)
        for k in range(1, N_HEADS):
            for i, one in enumerate(combinations(everyone, k)):
                drawn = {"layer": changed, "unit": unit(one), "rank": k, "control": f"random_set#{i}"}
                add(effect(v(one)), **drawn, **at)
                add(whole * way(one) * d * spread, **drawn, **at | {"metric": WAYS[direction]})
        for draw in range(3):
            for one in (*((head,) for head in everyone), *combinations(everyone, N_HEADS - 1), tuple(everyone)):
                values = whole * (len(one) / N_HEADS) ** 2 * d
                null = {"layer": changed, "direction": direction, "control": f"random_vector#{draw}", "metric": "kl_own_nats"}
                add(values, unit=unit(one), **null)
                add(whole * len(one) / N_HEADS * d, unit=unit(one), **null | {"metric": WAYS[direction]})
        for site, mlp in (("attn_proj", []), (None, [f"L{changed + 1}.mlp"])):
            names = [f"L{changed}.head 3", *mlp, f"L{changed}.head 0"]
            for k, share in zip((1, 2), (0.6, 0.9), strict=True):
                add(effect(share), site=site, unit="+".join(sorted(names[:k])), **at)
            add(effect(1.0), site=site, unit="all", **at)
        add(effect(0.01), site="attn_proj", rank=1, control="random_set#0", **at)
    mapped = {"direction": "base<-base", "metric": "kl_other_nats", "arm": "rrr", "rank": 4, "unit": "all", "layer": changed}
    add(d * (1 - 0.5 * whole), **mapped)
    parts.append(_on_select(table, changed, whole))
    js = {"layer": changed, "unit": "head 3", "arm": None, "metric": "attention_js_nats"}
    add(np.full(len(prompts), 0.25), **js)
    return pl.concat(parts, rechunk=True)


ORDER = [3, 0, 4, 5, 1, 2]


def _on_select(table: pl.DataFrame, changed: int, whole: float) -> pl.DataFrame:
    """What a run keeps on select: the first few of the greedy order, and all; by KL each single head too, in logits none but the first."""
    prompts, d = d_of(table, "select")
    prefixes = [ORDER[:k] for k in range(1, N_HEADS + 1)]
    place = {"measure": "heads", "split": "select", "prompt": prompts, "arm": "contribution", "site": "attn_proj", "layer": changed}
    parts = []
    for direction, metric in METRICS.items():
        for one in [*([head] for head in range(N_HEADS)), *prefixes[1:]]:
            nats = whole * v(one) * d
            values = nats if metric == "kl_own_nats" else d - nats
            parts.append(rows(values, direction=direction, metric=metric, unit=unit(one), **place))
        for one in prefixes:
            parts.append(rows(whole * way(one) * d, direction=direction, metric=WAYS[direction], unit=unit(one), **place))
    return pl.concat(parts, rechunk=True)


def heads_manifest(*, n_layers: int, changed: int) -> dict:
    """What the run records of it."""
    order = ORDER
    players = [f"L{changed}.head 3", f"L{changed + 1}.mlp", f"L{changed}.head 0"]
    both = {direction: {str(changed): order} for direction in METRICS}
    return {
        "heads": {
            "closer_layers": [changed], "chosen": "select", "n_candidates": n_layers, "n_heads": N_HEADS,
            "n_groups": N_HEADS // PER_GROUP, "heads_per_group": PER_GROUP,
            "exact": True, "permutations": 64, "draws": 200, "greedy": both, "single": both, "attribution": {},
            "orders": {direction: {"single": players} for direction in METRICS}, "attention_refused": None,
            "attention": [
                {"head": f"L{changed}.head 3", "prompt": "p<0>", "base": [["<b>The</b>", 0.6]], "tuned": [["\u202eThank", 0.7]], "js": 0.25}
            ],
        }
    }  # fmt: skip


def heads_of_a_small_whole(d: np.ndarray, *, whole: float = 0.05) -> tuple[pl.DataFrame, dict]:
    """Nine heads of layer 2 that break 5 % of D together on the report prompts; two of them have two thirds of that."""
    prompts = [f"r{i:03d}" for i in range(len(d))]
    place = {"measure": "heads", "split": "report", "direction": "tuned<-base", "metric": "kl_own_nats", "arm": "contribution"}
    place |= {"site": "attn_proj", "layer": 2, "prompt": prompts}
    shares = {"all": 1.0, "heads 4,5": 0.65, **{f"head {head}": 0.3 if head in (4, 5) else 0.05 for head in range(9)}}
    table = pl.concat([rows(whole * share * d, unit=unit, **place) for unit, share in shares.items()])
    return table, {"heads": {"closer_layers": [2], "greedy": {"tuned<-base": {"2": [5, 4]}}}}


def many_heads(table: pl.DataFrame, *, n_layers: int = 32, n_heads: int = 32, prompts: int = 4) -> tuple[pl.DataFrame, dict]:
    """A large model's heads, each with a share of its own and all shares of a layer added up, and the record: for figures, not for their numbers."""
    names, d = (one[:prompts] for one in d_of(table, "report"))
    size = np.random.default_rng(0).gamma(0.2, 1.0, (n_layers, n_heads))
    size /= 2 * size.sum(1, keepdims=True)
    parts: list[pl.DataFrame] = []

    def add(share: np.ndarray, units: list[str | None], layers: list[int] | int | None, **named: object) -> None:
        nats = np.outer(share, d)
        values = d - nats if named["metric"] == "kl_other_nats" else nats
        each = {"unit": np.repeat(units, prompts).tolist(), "prompt": names * len(units)}
        where = np.repeat(layers, prompts).tolist() if isinstance(layers, list) else layers
        fixed = {"measure": "heads", "split": "report", "arm": "contribution", "site": "attn_proj"} | named
        parts.append(rows(values.ravel(), layer=where, **each, **fixed))

    def steps(order: list[int]) -> tuple[list[str], np.ndarray]:
        prefixes = [sorted(order[:k]) for k in range(2, n_heads)]
        return [f"heads {','.join(map(str, one))}" for one in prefixes], np.array([size[closer][one].sum() for one in prefixes])

    everyone, layers, closer = [f"head {head}" for head in range(n_heads)], list(range(n_layers)), n_layers - 4
    order = np.argsort(-size[closer]).tolist()
    players = [f"L{at // n_heads}.head {at % n_heads}" for at in np.argsort(-size, axis=None)]
    both = [*players, *(f"L{layer}.mlp" for layer in layers)]
    for direction, metric in METRICS.items():
        at = {"direction": direction, "metric": metric}
        add(size.ravel(), everyone * n_layers, np.repeat(layers, n_heads).tolist(), **at)
        add(size.sum(1), ["all"] * n_layers, layers, **at)
        add(size.max(1), [None] * n_layers, layers, **at | {"site": "mlp_out"})
        add(steps(order)[1], steps(order)[0], closer, **at)
        for kind in ("shapley_nats", WAYS[direction]):
            add(size[closer], everyone, closer, direction=direction, metric=kind)
        add(size[closer].sum(keepdims=True), ["all"], closer, direction=direction, metric=WAYS[direction])
        for site, names_of in (("attn_proj", players), (None, both)):
            counts = [k for k in (1, 2, 3, 5, 8, 12, 20, 32, 50, 80, 120, 200, 320, 500, 800) if k < len(players)]
            units = ["+".join(names_of[:k]) for k in counts]
            add(np.array([k / len(players) for k in counts]), list(units), None, site=site, **at)
            add(np.ones(1), ["all"], None, site=site, **at)
    ways = {way: {direction: {str(closer): order} for direction in METRICS} for way in ("greedy", "single")}
    record = {"closer_layers": [closer], "n_heads": n_heads, "orders": {direction: {"single": both} for direction in METRICS}}
    return pl.concat(parts, rechunk=True), {"heads": ways | record}
