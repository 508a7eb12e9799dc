"""Rows of the measure `behaviour` with a planted truth: the tuned model refuses some prompts that the base answers, and nothing else differs.

From the changed layer on, writing the other model's state moves the soft refusal by 0.1 of what it does to the next token, prompt by prompt;
before it nothing moves.
"""

import numpy as np
import polars as pl

from mechdiff.rows import rows
from report.planted_sections import d_of

REFUSED, SOFT, COURTESY, PER_NAT = 9, 0.4, 3.0, 0.1
PROBES = [f"choice-{i}" for i in range(8)]
SCORED, SPOKEN = 12, 6
HOSTILE = "<script>alert(1)</script> I cannot help"


def planted_behaviour(table: pl.DataFrame, *, n_layers: int, changed: int, seed: int = 21) -> pl.DataFrame:
    """Rows to add to a planted run."""
    rng, (prompts, _) = np.random.default_rng(seed), d_of(table, "report")
    n = len(prompts)
    soft, style = rng.normal(-0.5, 0.2, n), rng.uniform(1, 5, n)
    refused, courtesy = np.arange(n) < REFUSED, rng.uniform(0, 0.1, n)
    right = np.arange(len(PROBES)) % 4 > 0
    parts = []

    def add(
        metric: str, unit: str | None, values: np.ndarray, *, split: str | None = "report", names: list[str] = prompts, **more: object
    ) -> None:
        parts.append(rows(values.astype(float), measure="behaviour", metric=metric, unit=unit, split=split, prompt=names, **more))

    for side in ("base", "tuned"):
        tuned = side == "tuned"
        add("refusal", side, refused & tuned)
        add("refusal_soft_nats", side, soft + tuned * (SOFT + rng.normal(0, 0.02, n)))
        add("refusal_soft_per_byte_nats", side, soft / 4 + tuned * 0.1)
        add("style_per_100_words", side, style + rng.normal(0, 1e-3, n))
        add("style_per_100_words", f"{side}, courtesy", courtesy + tuned * COURTESY)
        add("mc_correct", side, right, split=None, names=PROBES)
        add("mc_margin_per_byte_nats", side, np.where(right, 0.2, -0.1), split=None, names=PROBES)
        add("mask_coverage", f"{side}, shared tokens", np.full(n, 0.9))
        add("refusal_soft_nats", f"{side}, shared tokens", soft)
    patches = table.filter(
        pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("site") == "resid_post", pl.col("control").is_null()
    )
    patches = patches.filter(
        pl.col("metric") == "kl_own_nats", pl.col("split") == "report", pl.col("unit").is_null(), pl.col("strength").is_null()
    )
    scored, spoken = prompts[:SCORED], prompts[:SPOKEN]
    for direction, sign in (("tuned<-base", -1), ("base<-tuned", 1)):
        own = soft[:SCORED] + (sign < 0) * SOFT
        add("refusal_soft_nats", None, own, names=scored, direction=direction, control="no_op")
        add("refusal", None, np.full(SPOKEN, sign < 0), names=spoken, direction=direction, control="no_op")
        for layer in range(n_layers):
            here = patches.filter(pl.col("direction") == direction, pl.col("layer") == layer)
            kl = dict(here.select("prompt", "value").iter_rows())
            moved = sign * PER_NAT * np.array([kl[name] for name in scored]) * (layer >= changed)
            where = {"direction": direction, "layer": layer, "site": "resid_post", "arm": "identity"}
            add("refusal_soft_nats", None, own + moved, names=scored, **where)
            if layer >= changed:
                add("refusal", None, np.full(SPOKEN, sign > 0), names=spoken, **where)
    return pl.concat(parts, rechunk=True)


def behaviour_manifest(table: pl.DataFrame, *, n_layers: int, changed: int) -> dict:
    prompts, _ = d_of(table, "report")
    half = len(prompts) // 2
    patched = [{"direction": "base<-tuned", "layer": changed, "site": "resid_post", "arm": "identity", "text": "Sure, the third thing."}]
    texts = [
        {"prompt": name, "split": "report", "text": f"{HOSTILE}?", "label": None, "kind": None, "language": "en", "base": "Sure, the first thing.",
         "tuned": HOSTILE, "patched": patched if i == 3 else []}
        for i, name in enumerate(prompts)
    ]  # fmt: skip
    return {
        "behaviour": {
            "languages": {"en": half + len(PROBES), "kk": len(prompts) - half},
            "groups": {"report": {"en": prompts[:half], "kk": prompts[half:]}, "choice": {"en": PROBES}},
            "probes": {"file": "those that come with mechdiff", "n": len(PROBES)},
            "max_tokens": 32,
            "layers": list(range(n_layers)),
            "closer_layers": [changed],
            "n_scored": SCORED,
            "n_spoken": SPOKEN,
            "texts": texts,
        }
    }
