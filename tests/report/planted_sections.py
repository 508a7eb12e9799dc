"""Rows and manifest entries with a planted truth for the sections on texts, weights, grafting and the factorial.

They agree with `planted_run`: attention's output projection changed at one layer, in one direction, and behind it one MLP a
little. Each function takes the run's rows, because its D is theirs, and returns rows to add.
"""

import numpy as np
import polars as pl

from mechdiff.rows import rows

N_HEADS = 9
CONTINUATION = 12
ALONE = {"attn": 0.9, "mlp": 0.2}
"""Recovered share of each of the two changed modules alone."""
EARLY, LATE = 0.95, 0.9
"""Share of D that the blocks up to the change, or those from the change on, carry over alone."""
OV = 0.4


def d_of(table: pl.DataFrame, split: str) -> tuple[list[str], np.ndarray]:
    """Prompt ids and D of one split."""
    d = table.filter(
        pl.col("measure") == "divergence", pl.col("metric") == "kl_tuned_base_nats", pl.col("split") == split, pl.col("unit").is_null()
    ).sort("prompt")
    return d["prompt"].to_list(), d["value"].to_numpy()


def prompt_length(i: int) -> int:
    return 14 + i % 4


def planted_texts(table: pl.DataFrame, *, split: str = "report", seed: int = 1) -> pl.DataFrame:
    """D at each token: next to nothing in the prompt, D at its last token, half a nat behind it and falling."""
    rng = np.random.default_rng(seed)
    prompts, d = d_of(table, split)
    place = {"measure": "divergence", "split": split}
    parts = []
    for i, (prompt, total) in enumerate(zip(prompts, d, strict=True)):
        n = prompt_length(i)
        kl = np.concatenate([1e-3 * rng.lognormal(0, 1, n - 1), [total], 0.5 * np.exp(-np.arange(CONTINUATION) / 6)])
        units = [f"token {j}" for j in range(len(kl))]
        for metric, value in {
            "kl_tuned_base_nats": kl,
            "kl_base_tuned_nats": 0.8 * kl,
            "js_nats": np.log(2) * (1 - np.exp(-kl)),
            "top1_same": (kl < 0.4).astype(float),
        }.items():
            parts.append(rows(value, unit=units, prompt=[prompt] * len(kl), metric=metric, **place))
        first = float("nan") if i == 0 else n - 1 + (3 if i == 1 else 0)
        whole = {"first_divergence": first, "bits_per_byte_base": 1.5 + 0.01 * i, "bits_per_byte_tuned": 1.0 + 0.01 * i}
        parts.append(rows(list(whole.values()), metric=list(whole), prompt=[prompt] * 3, **place))
    return pl.concat(parts)


def texts_manifest(table: pl.DataFrame, *, split: str = "report", n: int = 3) -> dict:
    """The most divergent texts, and the tokens that moved."""
    prompts, d = d_of(table, split)
    words = ["Kunst", "ist", "schön,", "macht", "aber", "viel", "Arbeit.", "Thank", "you", "for", "asking!"]
    texts = []
    for i in np.argsort(-d)[:n]:
        length = prompt_length(int(i))
        kl = [0.001 * (j + 1) for j in range(length - 1)] + [float(d[i])] + [3.5, 1.2, 0.4, 0.2, *[0.05] * (CONTINUATION - 4)]
        tokens = [
            {"text": " " + words[j % len(words)], "kl": value, "top_base": " the", "top_tuned": "Thank"} for j, value in enumerate(kl)
        ]
        tokens[0]["text"], tokens[length - 2]["text"], tokens[length - 1]["text"] = "<|im_start|>", "<|im_end|>", "\n"
        texts.append({"prompt": prompts[i], "n_prompt_tokens": length, "tokens": tokens})
    up = [{"token": "Thank", "base": 0.0004, "tuned": 0.91}, {"token": " Of", "base": 0.002, "tuned": 0.03}]
    down = [{"token": "The", "base": 0.31, "tuned": 0.002}, {"token": "\n", "base": 0.05, "tuned": 3e-7}]
    return {"texts": texts, "moved_tokens": {"up": up, "down": down}}


def tensor(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}.weight"


def planted_weights(*, n_layers: int, changed: int) -> pl.DataFrame:
    """One output projection changed in one direction, one MLP a little in sixteen, all else to the bit as before."""
    names = {
        "attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        "norm": ["input_layernorm", "post_attention_layernorm"],
    }
    norms = {tensor(changed, "self_attn.o_proj"): 0.12, tensor(changed + 1, "mlp.down_proj"): 0.004}
    parts = [
        rows([0.0], layer=None, site=site, unit=unit, metric="relative_norm", measure="weights")
        for site, unit in (("embed", "model.embed_tokens.weight"), ("final_norm", "model.norm.weight"))
    ]
    for layer in range(n_layers):
        for site, tensors in names.items():
            units = [tensor(layer, name) for name in tensors]
            values = [norms.get(unit, 0.0) for unit in units]
            parts.append(rows(values, layer=layer, site=site, unit=units, metric="relative_norm", measure="weights"))
        for metric, size in (("ov_relative_norm", OV), ("qk_relative_norm", 0.0)):
            values = [size * (1 + head) / N_HEADS if layer == changed else 0.0 for head in range(N_HEADS)]
            heads = [f"head {head}" for head in range(N_HEADS)]
            parts.append(rows(values, layer=layer, site="attn", unit=heads, metric=metric, measure="weights"))
    for (unit, norm), site, rank in zip(norms.items(), ("attn", "mlp"), (1, 16), strict=True):
        layer = changed + (site == "mlp")
        said = {"spectral_norm": 30 * norm, "spectral_norm_null": 3 * norm, "stable_rank": 0.9 * rank, "numerical_rank": rank}
        said |= {f"energy_rank_{percent}": max(1, rank * percent // 100) for percent in (50, 90, 99)}
        said |= {"intruder_dimensions": 1, "changed": 1.0}
        parts.append(rows(list(said.values()), layer=layer, site=site, unit=unit, metric=list(said), measure="weights"))
    return pl.concat(parts)


def weights_manifest(*, changed: int) -> dict:
    """Spectra that fall off a cliff at the rank, and what could not be compared."""
    one = [3.6, *(1e-7 * 0.97**i for i in range(40))]
    sixteen = [*(0.1 * 0.9**i for i in range(16)), *(1e-8 for _ in range(24))]
    spectra = {tensor(changed, "self_attn.o_proj"): one, tensor(changed + 1, "mlp.down_proj"): sixteen}
    return {"weights": {"spectra": spectra, "statements": ["qk_relative_norm is at relative offset 0 of the rotary embedding"]}}


def planted_grafting(table: pl.DataFrame, *, changed: int, split: str = "report", seed: int = 2) -> pl.DataFrame:
    """Attention of one block recovers most of D alone, the next MLP a little, both together all of it."""
    rng = np.random.default_rng(seed)
    prompts, d = d_of(table, split)
    shared = {"measure": "grafting", "split": split, "metric": "kl_other_nats", "prompt": prompts}

    def v(share: float) -> np.ndarray:
        return d * (1 - share) * rng.lognormal(0, 0.1 * (0 < share < 1), len(d))

    attn, mlp = {"layer": changed, "site": "attn"}, {"layer": changed + 1, "site": "mlp"}
    first, second = f"L{changed}.attn", f"L{changed + 1}.mlp"
    cells = [
        (v(0), {"arm": "none"}),
        (v(1), {"arm": "all"}),
        (v(ALONE["attn"]), {"arm": "alone", **attn}),
        (v(ALONE["mlp"]), {"arm": "alone", **mlp}),
        (v(0.0), {"arm": "alone", "site": "final_norm"}),
        (v(ALONE["attn"]), {"arm": "from_below", **attn}),
        (v(1), {"arm": "from_below", **mlp}),
        (v(1), {"arm": "from_below", "site": "final_norm"}),
        (v(1), {"arm": "from_above", **attn}),
        (v(ALONE["mlp"]), {"arm": "from_above", **mlp}),
        (v(0.0), {"arm": "from_above", "site": "final_norm"}),
        (v(0.86), {"arm": "greedy", "unit": first, "rank": 1}),
        (v(0.99), {"arm": "greedy", "unit": f"{first}+{second}", "rank": 2}),
        *((v(share), {"arm": "truncate", "rank": k, **attn}) for k, share in ((1, 0.88), (2, 0.89), (4, 0.9))),
        *((v(share), {"arm": "truncate", "rank": k, **mlp}) for k, share in ((1, 0.02), (2, 0.04), (4, 0.1), (8, 0.15), (16, 0.2))),
        *((v(share), {"arm": "truncate", "rank": k, "unit": "all"}) for k, share in ((1, 0.9), (2, 0.91), (4, 0.93), (8, 0.97), (16, 1))),
    ]
    return pl.concat([rows(value, **where, **shared) for value, where in cells])


def planted_js(table: pl.DataFrame) -> pl.DataFrame:
    """Jensen-Shannon beside each KL of patching: of the base a third of what it is of the tuned model, so A is 0.5 at every site that acts."""
    own = table.filter(pl.col("measure") == "patching", pl.col("metric") == "kl_own_nats")
    of = own.select("split", "layer", "site", "unit", "arm", "control", "prompt", "value").filter(own["direction"] == "tuned<-base")
    js = 0.6 * (1 - (-pl.col("value") / 3).exp())
    both = [
        of.with_columns(direction=pl.lit(direction), value=js * size) for direction, size in (("tuned<-base", 1.0), ("base<-tuned", 1 / 3))
    ]
    shared = {
        "measure": pl.lit("patching"),
        "metric": pl.lit("js_own_nats"),
        "rank": pl.lit(None, pl.Int64),
        "strength": pl.lit(None, pl.Float64),
    }
    return pl.concat(both).with_columns(**shared).select(table.columns)


def planted_factorial(
    table: pl.DataFrame, *, n_layers: int, changed: int, split: str = "report", swaps: int = 40, seed: int = 3
) -> pl.DataFrame:
    """Blocks up to a split point below the change do nothing; above it they do all."""
    rng = np.random.default_rng(seed)
    prompts, d = d_of(table, split)
    parts = []
    for unit in (None, "all_pos"):
        for layer in range(n_layers):
            place = {"measure": "factorial", "split": split, "layer": layer, "unit": unit}
            early, late = (EARLY, 0.05) if layer >= changed else (0.05, LATE)
            runs = {"bb": d, "tb": d * (1 - early) * rng.lognormal(0, 0.1, len(d)), "bt": d * (1 - late) * rng.lognormal(0, 0.1, len(d))}
            runs["tt"] = np.full(len(d), 1e-9)
            for metric, of in (("nats", runs), ("logits", {arm: -2 * value for arm, value in runs.items()})):
                sign = 1 if metric == "nats" else -1
                bb, bt, tb, tt = (of[arm] for arm in ("bb", "bt", "tb", "tt"))
                effects = {
                    "upstream_effect": sign * ((bb - tb) + (bt - tt)) / 2,
                    "downstream_effect": sign * ((bb - bt) + (tb - tt)) / 2,
                    "interaction": sign * (bt + tb - bb - tt),
                }
                name = "kl_tuned_nats" if metric == "nats" else "logit_diff_divergent"
                parts += [rows(value, arm=arm, prompt=prompts, metric=name, **place) for arm, value in of.items()]
                for effect, value in effects.items():
                    null = [float((value * rng.choice([-1, 1], len(d))).mean()) for _ in range(swaps)]
                    parts.append(rows(value, prompt=prompts, metric=f"{effect}_{metric}", **place))
                    parts.append(rows(null, control=[f"label_swap#{i}" for i in range(swaps)], metric=f"{effect}_{metric}", **place))
    return pl.concat(parts)
