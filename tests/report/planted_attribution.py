"""Rows of the measure `attribution` with a planted truth: a few heads behind the change matter, one head left, one entered.

No model is involved. Upstream of the changed layer the two models' states are equal, so estimates and effects there are exactly 0. Behind it a
head's true effect is heavy-tailed; gradient times difference misses it by a factor of each head's own (`BIAS` on average, strayed by `STRAY`),
integrated gradients all by the share `MISSED`, so that the sum over a layer's heads misses the effect of the whole layer by it too.
In churn the base leans on `LEFT` and `STAYED`, the tuned model on `ENTERED` and `STAYED`.
"""

import numpy as np
import polars as pl

from mechdiff.rows import rows
from report.planted_sections import d_of

BIAS, STRAY, MISSED = 1.3, 0.4, 0.02
LEFT, ENTERED, STAYED = (1, 2), (5, 0), (3, 7)
"""Layer and head."""
OUTPUTS = {"mlp_out": 0.25, "attn_out": 0.6, "resid_post": 1.0}
"""Estimate at whole sites of the changed layer, as a share of D."""
SIGNS = {"tuned<-base": -1.0, "base<-tuned": 1.0}


def name(place: tuple[int, int]) -> str:
    return f"L{place[0]}.head {place[1]}"


def true_effects(*, n_layers: int, n_heads: int, changed: int, seed: int = 8) -> np.ndarray:
    """[layer, head], as shares of D: 0 before the change, heavy-tailed behind it; head 3 of the changed layer carries half."""
    rng = np.random.default_rng(seed)
    effects = 0.004 * rng.standard_t(2, (n_layers, n_heads))
    effects[:changed] = 0.0
    effects[changed, 3] = 0.5
    return effects


def own_attributions(*, n_layers: int, n_heads: int, seed: int = 9) -> dict[str, np.ndarray]:
    """[layer, head] of each model in logits: alike but for the two heads that left and entered."""
    rng = np.random.default_rng(seed)
    shared = 0.02 * rng.uniform(-1, 1, (n_layers, n_heads))
    found = {model: shared + 0.002 * rng.uniform(-1, 1, shared.shape) for model in ("base", "tuned")}
    for model, heads in (("base", {LEFT: 0.3, STAYED: -0.5}), ("tuned", {ENTERED: 0.4, STAYED: -0.45})):
        for place, value in heads.items():
            found[model][place] = value
    return found


def chosen(effects: np.ndarray, *, top: int = 20, seed: int = 10) -> dict[str, list[str]]:
    """The heads with the largest effects, and as many others at random."""
    n_heads = effects.shape[1]
    order = np.argsort(-np.abs(effects), axis=None, kind="stable")
    others = np.random.default_rng(seed).permutation(order[top:])[:top]
    names = [[name((int(i) // n_heads, int(i) % n_heads)) for i in part] for part in (order[:top], others)]
    return {"top": names[0], "random": names[1], "by": "select"}


def planted_attribution(
    table: pl.DataFrame, *, n_layers: int, n_heads: int = 9, changed: int, top: int = 20, undefined: int = 0, seed: int = 11
) -> pl.DataFrame:
    """Rows to add to a planted run; on the first `undefined` prompts of each split m is not defined."""
    rng = np.random.default_rng(seed)
    effects = true_effects(n_layers=n_layers, n_heads=n_heads, changed=changed)
    factors = rng.lognormal(0, STRAY, effects.shape)
    picked = chosen(effects, top=top)
    parts: list[pl.DataFrame] = []

    def add(values: np.ndarray, split: str, prompts: list[str], **named: object) -> None:
        blank = np.where(np.arange(len(prompts)) < undefined, np.nan, values)
        parts.append(rows(blank, measure="attribution", split=split, prompt=prompts, **named))

    for split in ("select", "report"):
        prompts, d = d_of(table, split)
        for direction, sign in SIGNS.items():
            true = sign * d[:, None, None] * effects * (1 + rng.normal(0, 0.3, (len(prompts), n_layers, n_heads)))
            crude = true * BIAS * factors
            fine = true * (1 + MISSED)
            for layer, head in np.ndindex(n_layers, n_heads):
                at = {"direction": direction, "layer": layer, "site": "attn_proj", "unit": f"head {head}"}
                add(crude[:, layer, head], split, prompts, arm="grad_x_diff", metric="attributed_logits", **at)
                if split == "report":
                    add(fine[:, layer, head], split, prompts, arm="integrated_gradients", metric="attributed_logits", **at)
                    if name((layer, head)) in picked["top"] + picked["random"]:
                        add(true[:, layer, head], split, prompts, arm="contribution", metric="effect_logits", **at)
            for layer in range(n_layers if split == "report" else 0):
                at = {"direction": direction, "layer": layer}
                whole = true[:, layer].sum(axis=1)
                add(whole, split, prompts, arm="contribution", metric="effect_logits", site="attn_proj", unit="all", **at)
                for site, size in OUTPUTS.items():
                    share = size / (1 + layer - changed) if layer >= changed else 0.0
                    add(sign * d * share, split, prompts, arm="grad_x_diff", metric="attributed_logits", site=site, **at)
        for model, values in own_attributions(n_layers=n_layers, n_heads=n_heads).items():
            for layer, head in np.ndindex(n_layers, n_heads):
                at = {"direction": f"{model}<-{model}", "layer": layer, "site": "attn_proj", "unit": f"head {head}"}
                each = values[layer, head] * rng.lognormal(0, 0.2, len(prompts))
                add(each, split, prompts, arm="grad_x_diff", metric="attributed_logits", **at)
    return pl.concat(parts, rechunk=True)


def attribution_manifest(
    *, n_layers: int, n_heads: int = 9, changed: int, top: int = 20, undefined: int = 0, threshold: float | None = None
) -> dict:
    """What the run records of it."""
    picked = chosen(true_effects(n_layers=n_layers, n_heads=n_heads, changed=changed), top=top)
    metric = "divergent" if undefined else "law"
    record = {"metric": metric, "steps": 5, "threshold": threshold, "top": top, "undefined_prompts": undefined}
    return {"attribution": {**record, "validated": dict.fromkeys(SIGNS, picked)}}
