"""Rows and manifest entries with a planted truth for the sections on texts, weights, grafting and the factorial.

They agree with `planted_run`: attention's output projection changed at one layer, in one direction, and behind it one MLP a
little. Each function takes the run's rows, because its D is theirs, and returns rows to add.
"""

import numpy as np
import polars as pl

from mechdiff.report.effect_shares import ARMS
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
    return pl.concat(parts, rechunk=True)


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
    return pl.concat(parts, rechunk=True)


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
    return pl.concat(both, rechunk=True).with_columns(**shared).select(table.columns)


def planted_factorial(table: pl.DataFrame, *, n_layers: int, changed: int, split: str = "report", seed: int = 3) -> pl.DataFrame:
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
            towards = {arm: 2 * (d - value) for arm, value in runs.items()}
            for metric, of in (("nats", runs), ("logits", {arm: -2 * value for arm, value in runs.items()}), ("linear_nats", towards)):
                sign = 1 if metric == "nats" else -1
                bb, bt, tb, tt = (of[arm] for arm in ("bb", "bt", "tb", "tt"))
                effects = {
                    "upstream_effect": sign * ((bb - tb) + (bt - tt)) / 2,
                    "downstream_effect": sign * ((bb - bt) + (tb - tt)) / 2,
                    "interaction": sign * (bt + tb - bb - tt),
                }
                name = {"nats": "kl_tuned_nats", "logits": "logit_diff_divergent"}.get(metric, metric)
                parts += [rows(value, arm=arm, prompt=prompts, metric=name, **place) for arm, value in of.items()]
                for effect, value in effects.items():
                    parts.append(rows(value, prompt=prompts, metric=f"{effect}_{metric}", **place))
    return pl.concat(parts, rechunk=True)


MAPPED_SITES = ("attn_out", "mlp_out", "resid_post")
CARRIES = {"identity": 0.0, "shift": 0.7, "mean": 0.65, "resample": 0.55, "diag_affine": 0.4, "anchored_ridge": 0.78, "anchored_procrustes": 0.74,
           "rrr": 0.82}  # fmt: skip
"""What each map carries of the change at the changed site; elsewhere above it half of that in the residual stream, nothing at outputs."""
CEILING = 0.94
RAW = 0.9
"""What writing the base's state breaks there, as a share of D."""
HELD_OUT, TRAIN = 0.6, 0.9
"""R2 of the change at the changed site."""
REFITS = 19
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.25)
CLOSER = (3, 4, 5)
RANK, UNCENTRED = 2, 3
LIMIT, FIT_PROMPTS = 50, 64
VARIES = 0.4
"""Share of the squared change that varies from prompt to prompt, where there is one."""
RANKS = (0, 1, 2, 4, 8)
BY_RANK = {0: 0.3, 1: 0.55, 2: 0.8, 4: 0.82, 8: 0.83}
"""What the map of rank k carries at the changed site."""


def _amount(layer: int, site: str, changed: int) -> float:
    """How much of the change passes a site: all of it at the changed one, half of it in the stream above."""
    return 1.0 if (layer, site) == (changed, "attn_out") else 0.5 if site == "resid_post" and layer >= changed else 0.0


def planted_transport(table: pl.DataFrame, *, n_layers: int, changed: int, seed: int = 4) -> pl.DataFrame:
    """Reduced-rank maps carry most of the change at one site, a shift nearly as much; maps of other layers and of shuffled pairs little."""
    rng = np.random.default_rng(seed)
    prompts, d = d_of(table, "report")
    reverse = table.filter(pl.col("metric") == "kl_base_tuned_nats", pl.col("split") == "report").sort("prompt")["value"].to_numpy()
    shared = {"measure": "transport", "prompt": prompts, "split": "report"}
    parts = []

    def noisy(value: np.ndarray) -> np.ndarray:
        return value * rng.lognormal(0, 0.08, len(value))

    def write(layer: int, site: str, arm: str, carries: float, *, s: float | None = None, **control: str) -> None:
        amount, at = (
            _amount(layer, site, changed),
            {"layer": layer, "site": site, "arm": arm, "rank": _rank_of(arm), "strength": s, **control, **shared},
        )
        left = 1 - carries if s is None else s * s * (1 - carries)
        parts.append(rows(noisy(d * RAW * amount * left + 1e-4), direction="tuned<-base", metric="kl_own_nats", **at))
        if arm != "identity":
            moved = amount * carries * (1 if s is None else min(1, s))
            parts.append(rows(noisy(d * (1 - moved)), direction="base<-base", metric="kl_other_nats", **at))
        if arm != "identity" and s is None and not control:
            parts.append(rows(noisy(reverse * (1 - 0.9 * amount * carries)), direction="tuned<-tuned", metric="kl_other_nats", **at))

    for layer in range(n_layers):
        for site in MAPPED_SITES:
            amount = _amount(layer, site, changed)
            top = noisy(d * (1 - CEILING * amount))
            at = {"layer": layer, "site": site}
            parts.append(rows(top, direction="base<-tuned", metric="kl_other_nats", arm="identity", rank=0, **at, **shared))
            for arm, carries in CARRIES.items():
                write(layer, site, arm, carries)
                if arm != "resample":
                    parts += _planted_fits(rng, layer, site, arm, carries * amount, prompts)
    for layer in CLOSER:
        for site in MAPPED_SITES:
            for arm in ("shift", *ARMS[4:8]):
                for s in STRENGTHS:
                    write(layer, site, arm, CARRIES[arm], s=s)
                if arm == "shift":
                    continue
                for other in CLOSER:
                    if other != layer:
                        write(layer, site, arm, 0.2 * CARRIES[arm], control=f"bogus_map:L{other}")
                write(layer, site, arm, 0.1, control="permuted")
                for draw in range(3):
                    write(layer, site, arm, 0.02, control=f"random_subspace#{draw}")
    return pl.concat([*parts, _planted_other_splits(table, changed)], rechunk=True)


def _rank_of(arm: str) -> int | None:
    return {"resample": None, "mean": 64, "diag_affine": 60, "anchored_ridge": 24, "anchored_procrustes": 48, "rrr": RANK}.get(arm, 0)


def _planted_fits(rng: np.random.Generator, layer: int, site: str, arm: str, carried: float, prompts: list[str]) -> list[pl.DataFrame]:
    """How well one map fits: the change is predicted where it passes, as well as chance elsewhere."""
    place = {"measure": "transport", "direction": "tuned<-base", "layer": layer, "site": site, "arm": arm, "rank": _rank_of(arm)}
    learned = arm in ARMS[4:]
    parts = []
    for split, r2 in (("fit", TRAIN), ("report", HELD_OUT)):
        change = carried * r2 if learned else 0.0
        said = {"r2": 0.9 + 0.1 * change, "r2_change": change - 0.02 * learned, "cka_mapped": 0.95, "norm_ratio": 1.0, "cycle_error": 0.1}
        parts.append(rows(list(said.values()), metric=list(said), split=split, **place))
    parts.append(rows(rng.uniform(0.8, 0.99, len(prompts)), metric="cosine", prompt=prompts, split="report", **place))
    if learned:
        null = rng.normal(-0.05, 0.01, REFITS).tolist()
        control = [f"permuted#{i}" for i in range(REFITS)]
        parts.append(rows(null, metric="r2_change", control=control, split="report", **place))
    return parts


def _planted_other_splits(table: pl.DataFrame, changed: int) -> pl.DataFrame:
    """On `fit` maps come closer than on `report`; on `select` the ridge carries most, so that it is chosen."""
    shared = {"measure": "transport", "layer": changed, "site": "attn_out"}
    prompts, d = d_of(table, "select")
    parts = []
    for arm in ("shift", *ARMS[4:8]):
        best = 0.9 if arm == "anchored_ridge" else CARRIES[arm]
        at = {"arm": arm, "rank": _rank_of(arm), "prompt": prompts, **shared}
        parts.append(rows(d * (1 - best), direction="base<-base", metric="kl_other_nats", split="select", **at))
        parts.append(rows(d * 0.05, direction="tuned<-base", metric="kl_own_nats", split="fit", **at))
    parts.append(rows(d, direction="tuned<-base", metric="kl_own_nats", split="fit", arm="identity", rank=0, prompt=prompts, **shared))
    return pl.concat(parts, rechunk=True)


def planted_rank(table: pl.DataFrame, *, n_layers: int, changed: int, seed: int = 5) -> pl.DataFrame:
    """Rank 2 (3 with its mean) at the changed site, 1 (2) in the stream above it, 0 elsewhere; two directions do nine tenths."""
    rng = np.random.default_rng(seed)
    prompts, d = d_of(table, "report")
    parts = []
    for layer in range(n_layers):
        for site in MAPPED_SITES:
            amount = _amount(layer, site, changed)
            best = {1.0: RANK, 0.5: 1, 0.0: 0}[amount]
            place = {"measure": "rank", "layer": layer, "site": site, "arm": "rrr"}
            whole = {"rank_chosen": best, "rank_best": best + (amount > 0), "rank_uncentred": best + (amount > 0)}
            whole |= {"rank_limit": LIMIT, "rank_prompts": FIT_PROMPTS}
            parts.append(rows([float(v) for v in whole.values()], metric=list(whole), split="fit", **place))
            for metric, squares in (("change_squared", d), ("change_varying_squared", d * (VARIES if amount else 0.01))):
                parts.append(rows(squares, metric=metric, split="report", prompt=prompts, **place))
            gain = [amount * (BY_RANK[k] - BY_RANK[0]) for k in RANKS]
            for split, metric, values in (
                ("fit", "r2_change", [1.3 * g for g in gain]),
                ("report", "r2_change", gain),
                ("fit", "r2_change_cv", gain),
                ("fit", "r2_change_cv_se", [0.03] * len(RANKS)),
            ):
                parts.append(rows(values, metric=metric, split=split, rank=list(RANKS), **place))
            if layer in CLOSER[1:] and amount:
                parts += _planted_curves(rng, layer, site, amount, prompts, d)
    return pl.concat(parts, rechunk=True)


def _planted_curves(
    rng: np.random.Generator, layer: int, site: str, amount: float, prompts: list[str], d: np.ndarray
) -> list[pl.DataFrame]:
    """What maps of each rank do at one site."""
    parts = []
    place = {"measure": "rank", "layer": layer, "site": site, "split": "report", "prompt": prompts}
    noise = rng.lognormal(0, 0.05, len(d))
    for s in (0.5, 1.5):
        raw = {**place, "measure": "transport", "arm": "identity", "strength": s}
        parts.append(rows(d * RAW * noise, direction="tuned<-base", metric="kl_own_nats", **raw))
    for k in RANKS:
        variants: list[tuple[float, dict]] = [
            (1.0, {"arm": "rrr"}),
            (0.7, {"arm": "rank_truncated"}),
            (1.02, {"arm": "rrr", "unit": "fisher"}),
        ]
        variants += [(0.05, {"arm": "rrr", "control": f"random_subspace#{i}"}) for i in range(3)]
        variants += [(s * (2 - s), {"arm": "rrr", "strength": s}) for s in (0.5, 1.5)]
        for size, named in variants:
            carried = amount * size * BY_RANK[k]
            parts.append(rows(d * (1 - carried) * RAW * noise, direction="tuned<-base", metric="kl_own_nats", rank=k, **named, **place))
            parts.append(rows(d * (1 - carried) * noise, direction="base<-base", metric="kl_other_nats", rank=k, **named, **place))
    return parts


STEERED = {1: 0.3, 2: 0.7, 4: 0.75}
"""Effect of interchange with so many directions at the changed site, as a share of D."""
ADDED = {0.5: 0.2, None: 0.45, 2.0: 0.35}
"""What the mean difference recovers, by strength."""
SIDE_LIMITS = {"max_side_kl_nats": 0.04, "max_perplexity_ratio": 1.1}


CHANCE, DRAWS = 0.02, 39
"""What random directions go of the way, and how many were run at the dose that is tested: `add` at half strength, the largest within the limits."""


def planted_steering(table: pl.DataFrame, *, changed: int, seed: int = 6) -> pl.DataFrame:
    """Two directions do most; adding the mean difference does less; large edits harm neutral prompts, random ones do little."""
    rng = np.random.default_rng(seed)
    prompts, d = d_of(table, "report")
    reverse = table.filter(pl.col("metric") == "kl_base_tuned_nats", pl.col("split") == "report").sort("prompt")["value"].to_numpy()
    neutral = [f"n{i:02d}" for i in range(12)]
    parts = []

    def edit(share: float, harm: float | None, direction: str, units: tuple[str | None, ...] = (None, "all_pos"), **named: object) -> None:
        at = {"measure": "steering", "direction": direction, "layer": changed, **named}
        of, own = (d, reverse) if direction.startswith("base") else (reverse, d)
        noise = rng.lognormal(0, 0.04, len(d))
        for unit in units:
            place = {"unit": unit, "prompt": prompts, "split": "report", **at}
            parts.append(rows(of * (1 - share) * noise, metric="kl_other_nats", **place))
            parts.append(rows(own * 9 * noise, metric="kl_own_nats", **place))  # damage, of any edit
        if harm is None:
            return
        said = {"side_kl_nats": harm, "side_top1_same": 1 - harm, "side_log_perplexity_ratio_nats": 0.8 * harm}
        for metric, size in said.items():
            parts.append(rows(size * rng.lognormal(0, 0.02, len(neutral)), metric=metric, unit="all_pos", prompt=neutral, **at))

    for site, size in (("attn_out", 1.0), ("resid_post", 0.5)):
        for strength, share in ADDED.items():
            edit(size * share, 0.05 * (strength or 1) ** 2, "base<-base", site=site, arm="add", rank=1, strength=strength)
        for i in range(3):
            edit(0.01, None, "base<-base", (None,), site=site, arm="add", rank=1, control=f"random_vector#{i}")
            edit(0.02, None, "base<-base", (None,), site=site, arm="add", rank=1, control=f"label_swap#{i}")
        for k, share in STEERED.items():
            for direction, arm in (
                ("base<-tuned", "interchange"),
                ("tuned<-base", "interchange"),
                ("tuned<-tuned", "ablate"),
                ("tuned<-tuned", "amplify"),
            ):
                part = share if arm == "interchange" else 0.8 * share if arm == "ablate" else -0.5 * share
                edit(size * part, None if arm == "interchange" else 0.05 * k, direction, site=site, arm=arm, rank=k)
                for i in range(3):
                    edit(0.04, None, direction, (None,), site=site, arm=arm, rank=k, control=f"random_subspace#{i}")
    for i in range(DRAWS):
        at = {"site": "attn_out", "arm": "add", "rank": 1, "strength": 0.5, "control": f"random_vector#{i}"}
        edit(CHANCE + 0.001 * i, None, "base<-base", ("all_pos",), **at)
    return pl.concat(parts, rechunk=True)


def steering_manifest(table: pl.DataFrame) -> dict:
    """Limits, and what was said."""
    said = {"text": "What is art?", "site": "L4.attn_out", "base": "Art is work.", "tuned": "Thank you for asking! Art is work.",
            "steered": "Thank you.\nArt is work."}  # fmt: skip
    return {"steering": {"limits": dict(SIDE_LIMITS), "texts": [{"prompt": d_of(table, "report")[0][0], **said}]}}
