"""Rows of small runs, each of one measure and a truth that is given: what the sentences of the page and its gates are tried on."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy import ndarray

from mechdiff.rows import rows


def names(split: str, n: int) -> list[str]:
    return [f"{split[0]}{i:03d}" for i in range(n)]


def divergence(d: ndarray, split: str = "report") -> pl.DataFrame:
    """D of each prompt, in nats."""
    return rows(d, measure="divergence", metric="kl_tuned_base_nats", split=split, prompt=names(split, len(d)))


def patched(gained: Mapping[str, ndarray], d: ndarray, *, split: str = "report", layer: int = 3, site: str = "mlp_out") -> pl.DataFrame:
    """By arm, the nats of D that the base recovers on each prompt where the tuned activation is patched into it at one site."""
    place = {"measure": "patching", "direction": "base<-tuned", "metric": "kl_other_nats", "split": split, "layer": layer, "site": site}
    return pl.concat([rows(d - values, arm=arm, prompt=names(split, len(d)), **place) for arm, values in gained.items()])


def answered(base: Mapping[str, ndarray], tuned: Mapping[str, ndarray]) -> pl.DataFrame:
    """By metric, what both models' answers to the report prompts are given."""
    parts = [
        rows(np.asarray(values, float), measure="behaviour", split="report", unit=side, metric=metric, prompt=names("report", len(values)))
        for side, of in (("base", base), ("tuned", tuned))
        for metric, values in of.items()
    ]
    return pl.concat(parts, rechunk=True)


def asked(n: int) -> dict:
    """The record of a run that asked `n` report prompts in English."""
    return {"behaviour": {"languages": {"en": n}, "groups": {"report": {"en": names("report", n)}}, "probes": None, "max_tokens": 32,
                          "layers": [], "closer_layers": [], "texts": []}}  # fmt: skip


def heads_of(values: ndarray, model: str) -> pl.DataFrame:
    """How much one model leans on each head: values [prompt, head], all of one layer."""
    place = {"measure": "attribution", "split": "report", "direction": f"{model}<-{model}", "metric": "attributed_logits",
             "arm": "grad_x_diff", "layer": 0, "site": "attn_proj"}  # fmt: skip
    return pl.concat([rows(one, unit=f"head {head}", prompt=names("report", len(one)), **place) for head, one in enumerate(values.T)])


def grafted(shares: Mapping[str, Mapping[str, float]], d: ndarray, *, split: str = "report", seed: int = 0) -> pl.DataFrame:
    """By arm and module or set ("L3.mlp", "L3.mlp+L5.attn"), the share of D that it recovers, with a tenth of noise a prompt."""
    random, parts = np.random.default_rng(seed), []
    shared = {"measure": "grafting", "metric": "kl_other_nats", "split": split, "prompt": names(split, len(d))}
    parts.append(rows(d, arm="none", **shared))
    for arm, of in shares.items():
        for unit, share in of.items():
            v = d * (1 - share * random.lognormal(0, 0.1, len(d)))
            layer, _, site = unit.removeprefix("L").partition(".")
            where = {"unit": unit, "rank": unit.count("+") + 1} if arm == "greedy" else {"layer": int(layer), "site": site}
            parts.append(rows(v, arm=arm, **where, **shared))
    return pl.concat(parts, rechunk=True)
