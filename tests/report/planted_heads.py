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

N_HEADS, WHOLE, TOP = 6, 0.8, 3
METRICS = {"tuned<-base": "kl_own_nats", "base<-tuned": "kl_other_nats"}
DIRECTIONS = np.zeros((N_HEADS, 4))
DIRECTIONS[:, 0] = 0.1, 0.0, 0.0, 0.8, 0.1, 0.1
DIRECTIONS[1, 1], DIRECTIONS[2, 1] = 0.3, -0.3


def v(heads: Iterable[int]) -> float:
    """As a share of v(all)."""
    return float((DIRECTIONS[sorted(heads)].sum(0) ** 2).sum() / (DIRECTIONS.sum(0) ** 2).sum())


def shapley() -> np.ndarray:
    """Of each head, as a share of v(all): with v quadratic, its inner product with the sum."""
    return DIRECTIONS @ DIRECTIONS.sum(0) / (DIRECTIONS.sum(0) ** 2).sum()


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
            add(effect(0.2 if layer == changed + 1 else 0.0), layer=layer, **at | {"site": "mlp_out"})
        for head in everyone:
            here = {"layer": changed, "direction": direction, "unit": f"head {head}"}
            add(whole * shapley()[head] * d * spread, metric="shapley_nats", **here)
            add(whole * shapley()[head] * d * spread, metric="fisher_nats", **here)
            add(effect(v([head])), arm="write", metric=metric, **here)
        add(whole * d * spread, metric="fisher_nats", layer=changed, direction=direction, unit="all")
        for k in range(1, N_HEADS):
            for i, one in enumerate(combinations(everyone, k)):
                add(effect(v(one)), layer=changed, unit=unit(one), rank=k, control=f"random_set#{i}", **at)
        for draw in range(3):
            for one in (*((head,) for head in everyone), *combinations(everyone, N_HEADS - 1), tuple(everyone)):
                values = whole * (len(one) / N_HEADS) ** 2 * d
                null = {"layer": changed, "direction": direction, "control": f"random_vector#{draw}", "metric": "kl_own_nats"}
                add(values, unit=unit(one), **null)
        for site, mlp in (("attn_proj", []), (None, [f"L{changed + 1}.mlp"])):
            names = [f"L{changed}.head 3", *mlp, f"L{changed}.head 0"]
            for k, share in zip((1, 2), (0.6, 0.9), strict=True):
                add(effect(share), site=site, unit="+".join(sorted(names[:k])), **at)
            add(effect(1.0), site=site, unit="all", **at)
        add(effect(0.01), site="attn_proj", rank=1, control="random_set#0", **at)
    js = {"layer": changed, "unit": "head 3", "arm": None, "metric": "attention_js_nats"}
    add(np.full(len(prompts), 0.25), **js)
    return pl.concat(parts)


def heads_manifest(*, n_layers: int, changed: int) -> dict:
    """What the run records of it."""
    order = [3, 0, 4, 5, 1, 2]
    players = [f"L{changed}.head 3", f"L{changed + 1}.mlp", f"L{changed}.head 0"]
    both = {direction: {str(changed): order} for direction in METRICS}
    return {
        "heads": {
            "closer_layers": [changed], "chosen": "select", "n_candidates": n_layers, "n_heads": N_HEADS, "n_groups": 3, "heads_per_group": 2,
            "exact": True, "permutations": 64, "draws": 200, "greedy": both, "single": both, "attribution": {},
            "orders": {direction: {"single": players} for direction in METRICS}, "attention_refused": None,
            "attention": [
                {"head": f"L{changed}.head 3", "prompt": "p<0>", "base": [["<b>The</b>", 0.6]], "tuned": [["\u202eThank", 0.7]], "js": 0.25}
            ],
        }
    }  # fmt: skip
