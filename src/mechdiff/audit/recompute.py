"""Each row once more, another way: by whole forward passes, from the definitions, in float64.

A function takes the run and a row and returns the number, or raises `Not` with the reason why this row is not computed another way (a random draw, a
fit that was not kept).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.audit import whole
from mechdiff.audit.rerun import WINDOW, Rerun
from mechdiff.audit.whole import Put
from mechdiff.engine.models import Model
from mechdiff.engine.quantization import held_matrix
from mechdiff.engine.sites import Site
from mechdiff.engine.speech import stop_ids
from mechdiff.engine.units import Unit, parts
from mechdiff.measures.counterfactuals import LOCATING as LAW_METRICS
from mechdiff.measures.maps import load_map
from mechdiff.measures.vectors import load_vector
from mechdiff.rows import WITHOUT
from mechdiff.study.options import AttributionOptions, DivergenceOptions, HeadsOptions, TransportOptions

Row = dict[str, Any]


class Not(Exception):
    """A row that is not computed another way; its text says why."""


# ---- the law of a run ------------------------------------------------------------------------------------------------------------------


def of_law(run: Rerun, row: Row, logits: Tensor) -> float:
    """A metric of a counterfactual run."""
    own = labels.runner(row["direction"])
    split, prompt, metric = row["split"], row["prompt"], row["metric"]
    base, tuned = (run.law(side, split, prompt) for side in ("base", "tuned"))
    mine, other = (tuned, base) if own == "tuned" else (base, tuned)
    n_shared = run.prepared.tokens.n_shared
    if metric == "kl_own_nats":
        return whole.kl(mine, logits)
    if metric == "js_own_nats":
        return whole.js(mine, logits)
    if metric == "kl_own_shared_nats":
        return whole.kl(mine[:n_shared], logits[:n_shared])
    if metric == "js_own_shared_nats":
        return whole.js(mine[:n_shared], logits[:n_shared])
    if metric == "kl_other_nats":
        return whole.kl(other[:n_shared], logits[:n_shared])
    if metric == "top1_same":
        top = int(mine.argmax())
        return top1(logits, top)
    if metric == "logit_diff_divergent":
        return divergent(logits[:n_shared], base[:n_shared], tuned[:n_shared])
    if metric == "fisher_overlap_nats":
        return whole.overlap(mine[:n_shared], other[:n_shared], logits[:n_shared])
    raise Not(f"the metric {metric} is a fit or a draw")


def top1(logits: Tensor, top: int) -> float:
    """1 where the token has the highest logit; 0.5 where it is too near to tell (rounding decides), which no row can contradict."""
    gap = float(logits.max() - logits[top])
    return 1.0 if gap == 0 else 0.5 if gap < 1e-4 else 0.0


def divergent(logits: Tensor, base: Tensor, tuned: Tensor) -> float:
    first, second = int(tuned.argmax()), int(base.argmax())
    return math.nan if first == second else float(logits[first] - logits[second])


def window(unit: str | None) -> tuple[int, int | None]:
    """Blocks and positions (None: all) that a unit of patching names."""
    width, position = labels.window_of(unit)
    return width, labels.n_positions(position)


def run_with(run: Rerun, row: Row, puts: Callable[[], dict[Site, Put]]) -> Tensor:
    """The law of a row's run; rows that differ in the metric alone share it."""
    key = tuple(
        row[name] for name in ("measure", "direction", "split", "layer", "site", "unit", "arm", "rank", "strength", "control", "prompt")
    )
    if key not in run.cached:
        run.cached[key] = run.run(labels.runner(row["direction"]), row["split"], row["prompt"], puts())
    return run.cached[key]


# ---- measures --------------------------------------------------------------------------------------------------------------------------


def divergence(run: Rerun, row: Row) -> float:
    """The two models' laws at the decision position, and at every token of a text that both read."""
    split, prompt, unit, metric = row["split"], row["prompt"], row["unit"], row["metric"]
    if metric.startswith("tokens_per_"):
        _, _, what, side = metric.split("_")
        text = run.prepared.rendered[split][prompt].prompt.text
        n_tokens = len(run.prepared.pair.tokenizer(side)(text, add_special_tokens=False)["input_ids"])
        return n_tokens / (len(text.encode()) if what == "byte" else len(text.split()))
    if unit == "native":
        if metric.startswith("kl_native"):
            side = metric.removeprefix("kl_native_").removesuffix("_nats")
            return whole.kl(run.law(side, "native", prompt), run.law(side, split, prompt))
        return between(run, metric, run.law("base", "native", prompt), run.law("tuned", "native", prompt))
    if unit is None and not metric.startswith(("bits_per_byte", "first_divergence")):
        return between(run, metric, run.law("base", split, prompt), run.law("tuned", split, prompt))
    base, tuned = _texts(run, split, prompt)
    if unit is not None:
        place = labels.token_of(unit)
        return between(run, metric, base["laws"][place], tuned["laws"][place])
    decision = len(run.ids("tuned", split, prompt)) - 1
    if metric == "first_divergence":
        apart = [i for i in range(decision, len(tuned["laws"])) if int(base["laws"][i].argmax()) != int(tuned["laws"][i].argmax())]
        return float(apart[0]) if apart else math.nan
    one = base if metric.endswith("base") else tuned
    said = tuned["said"]
    total = sum(-float(one["laws"][decision + i].log_softmax(-1)[token]) for i, token in enumerate(said))
    n_bytes = sum(map(len, run.prepared.vocabularies["tuned"].spelled(said)))
    return total / math.log(2) / n_bytes if n_bytes else math.nan


def between(run: Rerun, metric: str, base: Tensor, tuned: Tensor) -> float:
    """A divergence of two laws."""
    shared = run.prepared.tokens.n_shared
    if metric == "kl_tuned_base_nats":
        return whole.kl(tuned, base)
    if metric == "kl_base_tuned_nats":
        return whole.kl(base, tuned)
    if metric == "js_nats":
        return whole.js(base, tuned)
    if metric == "top1_same":
        return top1(tuned, int(base.argmax()))
    if metric == "kl_shared_nats":
        return whole.kl(tuned[:shared], base[:shared])
    if metric == "kl_shared_base_tuned_nats":
        return whole.kl(base[:shared], tuned[:shared])
    if metric == "fisher_total_nats":
        return whole.overlap(base[:shared], tuned[:shared], tuned[:shared])
    if metric in ("mass_outside", "mass_outside_base"):
        return float((tuned if metric == "mass_outside" else base).softmax(-1)[shared:].sum())
    if metric == "kl_byte_nats":
        first = run.prepared.tokens.first_bytes
        laws = [np.bincount(first, weights=law.softmax(-1).numpy(), minlength=257) for law in (tuned, base)]
        return float(sum(p * math.log(p / q) for p, q in zip(*laws, strict=True) if p > 0))
    raise Not(f"the metric {metric}")


def _texts(run: Rerun, split: str, prompt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both models' laws after each token of the prompt and of what the tuned model says next, by itself."""
    if not run.prepared.tokens.all_shared or run.ids("base", split, prompt) != run.ids("tuned", split, prompt):
        raise Not("texts of two tokenizers are aligned by the run's own code")
    key = ("text", split, prompt)
    if key not in run.cached:
        options = run.prepared.study.asked(DivergenceOptions)
        ids = list(run.ids("tuned", split, prompt))
        said: list[int] = []
        with run.model("tuned") as model:
            ends = _ends(run, model)
            for _ in range(options.continuation if options else 0):
                token = int(whole.logits(model, [*ids, *said]).argmax())
                if token in ends:
                    break
                said.append(token)
        read = [*ids, *said][: max(len(ids), len(ids) + len(said) - 1)]
        found = []
        for side in ("base", "tuned"):
            with run.model(side) as model:
                found.append({"laws": whole.logits(model, read, everywhere=True), "said": said})
        run.cached[key] = tuple(found)
    return run.cached[key]


def _ends(run: Rerun, model: Model) -> frozenset[int]:
    return stop_ids(model, run.prepared.pair.tokenizer(model.side), run.prepared.tokenizers())


def patching(run: Rerun, row: Row) -> float:
    """A state written at a site, at one position or several, in one block or a window of them."""
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    width, n_pos = window(row["unit"])
    if n_pos and n_pos > WINDOW:
        raise Not(f"more than {WINDOW} positions")

    def puts() -> dict[Site, Put]:
        sites = [Site(layer, row["site"]) for layer in range(row["layer"], row["layer"] + width)]
        return {site: Put(value=written(run, row, site, n_pos)) for site in sites}

    return of_law(run, row, run_with(run, row, puts))


def written(run: Rerun, row: Row, site: Site, n_pos: int | None) -> Tensor:
    """`[pos, d]` that an arm without a fit writes."""
    to, source = labels.sides(row["direction"])
    split, prompt, arm = row["split"], row["prompt"], row["arm"]
    if arm == "identity":
        return run.state(source, split, prompt, site, n_pos)
    if n_pos is None:
        raise Not("an arm of all positions that needs other prompts")
    towards = "base" if row["direction"] == "tuned<-tuned" else "tuned"
    if arm == "oracle":
        return run.state(to, split, prompt, site, n_pos)
    if arm == "resample":
        return run.state(towards, split, run.donor(split, prompt), site, n_pos)
    if arm == "mean":
        return run.mean(towards, site, n_pos)
    if arm == "shift":
        away = "tuned" if towards == "base" else "base"
        return run.state(away, split, prompt, site, n_pos) + run.mean(towards, site, n_pos) - run.mean(away, site, n_pos)
    raise Not(f"the arm {arm}")


def factorial(run: Rerun, row: Row) -> float:
    """Four runs of two halves, and the effects made of them."""
    if row["control"] not in (None, "no_op"):
        raise Not("label swaps are random draws of the rows above")
    split, prompt, n_pos = row["split"], row["prompt"], window(row["unit"])[1]
    base, tuned = (run.law(side, split, prompt)[: run.prepared.tokens.n_shared] for side in ("base", "tuned"))

    def law(arm: str) -> Tensor:
        if arm in ("bb", "tt"):
            return base if arm == "bb" else tuned
        up, down = ("tuned", "base") if arm == "tb" else ("base", "tuned")
        site = Site(row["layer"], "resid_post")
        key = ("half", arm, split, prompt, site, n_pos)
        if key not in run.cached:
            run.cached[key] = run.run(down, split, prompt, {site: Put(value=run.state(up, split, prompt, site, n_pos))})
        return run.cached[key][: run.prepared.tokens.n_shared]

    def score(arm: str, what: str) -> float:
        if what == "linear_nats":
            return float(((tuned.softmax(-1) - base.softmax(-1)) * (law(arm) - base)).sum())
        return whole.kl(tuned, law(arm)) if what == "kl_tuned_nats" else divergent(law(arm), base, tuned)

    if row["arm"] is not None:
        return score(row["arm"], row["metric"])
    name = next(name for name in ("upstream_effect", "downstream_effect", "interaction") if row["metric"].startswith(name))
    sign, what = {"nats": (-1, "kl_tuned_nats"), "logits": (1, "logit_diff_divergent"), "linear_nats": (1, "linear_nats")}[
        row["metric"].removeprefix(f"{name}_")
    ]
    bb, bt, tb, tt = (sign * score(arm, what) for arm in ("bb", "bt", "tb", "tt"))
    return {"upstream_effect": (tb - bb + tt - bt) / 2, "downstream_effect": (bt - bb + tt - tb) / 2, "interaction": tt - tb - bt + bb}[
        name
    ]


def transport(run: Rerun, row: Row) -> float:
    """Mapped states written into a running model, by the maps that the run kept."""
    if row["metric"] not in LAW_METRICS:
        raise Not("qualities of fits")
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    if row["control"] is not None:
        raise Not("controls by fits that are not kept")
    if row["strength"] is not None:
        raise Not("strengths of a map")
    if row["unit"] == "interchange":
        raise Not("interchanges, whose directions are not kept")
    site = Site(row["layer"], row["site"])
    if row["arm"] in ("identity", "shift", "mean", "resample"):
        if (options := run.prepared.study.asked(TransportOptions)) and options.rows_per_prompt > 1:
            raise Not("means over positions spread along the prompts")
        return of_law(run, row, run_with(run, row, lambda: {site: Put(value=written(run, row, site, 1))}))
    back = row["direction"] == "tuned<-tuned"
    file = run.path / "maps" / f"{site}.{row['arm']}.{'tuned_to_base' if back else 'base_to_tuned'}.safetensors"
    if not file.is_file():
        raise Not("maps are kept at the closer layers alone")
    one = load_map(file)
    if row["rank"] != one.rank_:
        raise Not("maps of other ranks are not kept")
    source = run.state("tuned" if back else "base", row["split"], row["prompt"], site)
    return of_law(run, row, run_with(run, row, lambda: {site: Put(value=one.transform(source).float())}))


def heads(run: Rerun, row: Row) -> float:
    """Contributions of heads exchanged, single, in sets, across blocks; and what a whole MLP gives."""
    if row["metric"] not in (*LAW_METRICS, "fisher_nats"):
        raise Not("Shapley values are means over many sets; attention patterns have no second way here")
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    if row["control"] and labels.control_kind(row["control"]) != "random_set":
        raise Not("random edits are draws")
    if row["arm"] not in ("contribution", "routing", "write"):
        raise Not(f"the arm {row['arm']}")
    law = run_with_heads(run, row, players(run, row))
    if row["metric"] != "fisher_nats":
        return of_law(run, row, law)
    everyone = run_with_heads(run, {**row, "unit": labels.ALL}, [(row["layer"], head) for head in range(run.nets["base"].shape.n_heads)])
    own = run.law(labels.runner(row["direction"]), row["split"], row["prompt"])
    own, law, everyone = (one[: run.prepared.tokens.n_shared] for one in (own, law, everyone))
    p, moved = own.softmax(-1), everyone - own
    return float((p * (law - own) * (moved - (p * moved).sum())).sum() / 2)


def players(run: Rerun, row: Row) -> list[labels.Player]:
    """(block, head), or (block, None) for its MLP, of a row's unit."""
    unit, layer, shape = row["unit"], row["layer"], run.nets["base"].shape
    if row["site"] == "mlp_out":
        return [(layer, None)]
    if layer is None and unit == labels.ALL:  # the whole network: its heads, or (of no one site) its MLPs too
        options, mlps = run.prepared.study.asked(HeadsOptions), [None] if row["site"] is None else []
        assert options
        return [(block, one) for block in options.layer_numbers(shape.n_layers) for one in (*range(shape.n_heads), *mlps)]
    if unit is None:
        raise Not("random sets across the network are draws")
    if layer is None:
        return [labels.player_of(name) for name in labels.set_of(unit)]
    if (group := labels.group_of(unit)) is not None:
        size = shape.n_heads // shape.n_kv_heads
        return [(layer, group * size + i) for i in range(size)]
    return [(layer, head) for head in labels.heads_of(unit, shape.n_heads)]


def run_with_heads(run: Rerun, row: Row, chosen: list[labels.Player]) -> Tensor:
    """The law of a run in which these heads and MLPs give what the other model's give: their own part is taken out as it is by then."""
    side, other = labels.sides(row["direction"])
    split, prompt, arm = row["split"], row["prompt"], row["arm"]
    key = ("heads", row["direction"], split, prompt, arm, tuple(chosen))
    if key in run.cached:
        return run.cached[key]
    z_now: dict[int, Tensor] = {}
    touches: dict[Site, whole.Touch] = {}
    for layer in sorted({layer for layer, head in chosen if head is not None}):
        mine = [head for block, head in chosen if block == layer and head is not None]
        theirs = run.state(other, split, prompt, Site(layer, "z"))[-1].reshape(run.nets["base"].shape.n_heads, -1)
        w_own, w_other = run.output(side, layer).double(), run.output(other, layer).double()

        def note(states: Tensor, layer: int = layer) -> None:
            z_now[layer] = states[-1].detach().clone()

        def swap(
            states: Tensor, layer: int = layer, mine: list = mine, theirs: Any = theirs, w_own: Any = w_own, w_other: Any = w_other
        ) -> Tensor:
            own = z_now[layer].reshape(theirs.shape).double()
            there = theirs.double()
            ends = {"contribution": (w_other, w_own), "routing": (w_own, w_own)}.get(arm)
            new = states.clone()
            for head in mine:
                if arm == "write":
                    change = there[head] @ (w_other[head] - w_own[head])
                else:
                    assert ends
                    change = there[head] @ ends[0][head] - own[head] @ ends[1][head]
                new[-1] += change.to(new)
            return new

        touches[Site(layer, "z")], touches[Site(layer, "attn_proj")] = note, swap
    for layer in (layer for layer, head in chosen if head is None):
        value = run.state(other, split, prompt, Site(layer, "mlp_out"))[-1]

        def put(states: Tensor, value: Tensor = value) -> Tensor:
            new = states.clone()
            new[-1] = value
            return new

        touches[Site(layer, "mlp_out")] = put
    with run.model(side) as model, whole.touched(model, touches):
        run.cached[key] = run.prepared.tokens.place(whole.logits(model, run.ids(side, split, prompt)), side)
    return run.cached[key]


def attribution(run: Rerun, row: Row) -> float:
    """True effects on m, and gradients of whole passes."""
    options = run.prepared.study.asked(AttributionOptions)
    assert options
    if options.metric != "law":
        raise Not(f"attribution's metric {options.metric}")
    if row["direction"] in labels.WITHIN:
        raise Not("heads against their own mean")
    split, prompt = row["split"], row["prompt"]
    side, other = labels.sides(row["direction"])
    shared = run.prepared.tokens.n_shared
    base, tuned = (run.law(one, split, prompt)[:shared] for one in ("base", "tuned"))
    if not run.prepared.tokens.all_shared:
        raise Not("two vocabularies")
    weights = tuned.softmax(-1) - base.softmax(-1)
    if row["metric"] == "effect_logits":
        return float(weights @ (run_with_heads(run, row, players(run, row)) - run.law(side, split, prompt)))
    site, by_id = Site(row["layer"], row["site"]), _by_id(run, side, weights)
    both = {one: run.state(one, split, prompt, site)[-1].double() for one in (side, other)}
    change = both[other] - both[side]
    if row["unit"] is not None:
        z = {one: run.state(one, split, prompt, Site(row["layer"], "z"))[-1].double() for one in (side, other)}
        parts_of = {one: z[one].reshape(len(run.output(one, row["layer"])), -1) for one in z}
        by_head = {one: torch.einsum("hk,hkd->hd", parts_of[one], run.output(one, row["layer"]).double()) for one in z}
        change = (by_head[other] - by_head[side])[labels.head_of(row["unit"])]
        path = (by_head[other] - by_head[side]).sum(0)
    else:
        path = change
    steps = [0.0] if row["arm"] == "grad_x_diff" else [(i + 0.5) / options.steps for i in range(options.steps)]
    key = ("gradient", side, split, prompt, site, row["arm"])
    if key not in run.cached:
        with run.model(side) as model:
            ids = run.ids(side, split, prompt)
            found = [whole.gradients(model, ids, [site], by_id, {site: (step * path).float()})[site] for step in steps]
        run.cached[key] = torch.stack(found).mean(0)
    return float(run.cached[key] @ change)


def _by_id(run: Rerun, side: str, weights: Tensor) -> Tensor:
    """Weights of listed tokens as the model itself numbers them."""
    found = torch.zeros(run.nets[side].shape.vocab, dtype=torch.float64)
    found[torch.from_numpy(run.prepared.tokens.ids[side])] = weights
    return found


def grafting(run: Rerun, row: Row) -> float:
    """A hybrid network: tensors of the tuned model put into a copy of the base's, one whole pass."""
    if row["arm"] not in ("none", "all", "alone", "from_below", "from_above", "greedy"):
        raise Not("changes cut to a rank")
    base, tuned = run.nets["base"], run.nets["tuned"]
    named, new = (dict(model.net.named_parameters(remove_duplicate=False)) for model in (base, tuned))
    unit_of = parts(base)
    changed = sorted({unit for name, unit in unit_of.items() if not torch.equal(named[name], new[name])})
    if row["arm"] == "greedy":
        chosen = {str(unit) for unit in changed if str(unit) in labels.set_of(row["unit"])}
    else:
        here = Unit(row["site"], row["layer"]) if row["site"] else None
        at = changed.index(here) if here else 0
        sets: dict[str, list[Any]] = {
            "none": [], "all": changed, "alone": [here], "from_below": changed[: at + 1], "from_above": changed[at:],
        }  # fmt: skip
        chosen = {str(unit) for unit in sets[row["arm"]]}
    key = ("graft", row["split"], row["prompt"], tuple(sorted(chosen)))
    if key not in run.cached:
        kept = {name: named[name].data for name, unit in unit_of.items() if str(unit) in chosen}
        try:
            for name in kept:
                named[name].data = new[name].data
            run.cached[key] = whole.logits(base, run.ids("base", row["split"], row["prompt"]))
        finally:
            for name, tensor in kept.items():
                named[name].data = tensor
    base_law, tuned_law = (run.law(side, row["split"], row["prompt"]) for side in ("base", "tuned"))
    grown = run.prepared.tokens.place(run.cached[key], "base")
    return whole.overlap(base_law, tuned_law, grown) if row["metric"] == "fisher_overlap_nats" else whole.kl(tuned_law, grown)


def similarity(run: Rerun, row: Row) -> float:
    """From the definitions, with N x N matrices, on states of whole passes."""
    if row["control"] is not None:
        raise Not("random pairings are draws")
    if row["unit"] is not None:
        raise Not("states pooled over words")
    names, site = run.names(row["split"]), Site(row["layer"], row["site"])
    x, y = (np.stack([run.state(side, row["split"], name, site)[-1].double().numpy() for name in names]) for side in ("base", "tuned"))
    metric = row["metric"].removesuffix(WITHOUT)
    kept = [i for i, name in enumerate(names) if metric == row["metric"] or name != row["prompt"]]
    if metric == "cka":
        return cka(x[kept], y[kept])
    if metric == "cka_without_top3":
        shares = [np.var(states, axis=0) / np.var(states, axis=0).sum() for states in (x, y)]
        shares = [shares[0] + shares[1]] * 2 if x.shape == y.shape else shares
        x, y = (np.delete(states, np.argsort(-share, kind="stable")[:3], 1) for states, share in zip((x, y), shares, strict=True))
        return cka(x[kept], y[kept])
    if metric == "cka_normed":
        return cka(*(run.after_norm(side, row["split"], site)[kept] for side in ("base", "tuned")))
    if metric == "same_basis_change":
        return float(np.mean(np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)))
    x, y = x - x.mean(0), y - y.mean(0)
    if metric == "cka_biased":
        return float(np.sum((x.T @ y) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)) if x.any() and y.any() else math.nan
    if metric.startswith("participation_ratio"):
        values = np.linalg.svd(x if metric.endswith("base") else y, compute_uv=False) ** 2
        return float(values.sum() ** 2 / (values**2).sum()) if values.any() else math.nan
    if metric == "procrustes_distance":
        if not (x.any() and y.any()):
            return math.nan
        u, _, vt = np.linalg.svd((x / np.linalg.norm(x)).T @ (y / np.linalg.norm(y)), full_matrices=False)
        return float(np.linalg.norm((x / np.linalg.norm(x)) @ (u @ vt) - y / np.linalg.norm(y)))
    raise Not("neighbours may be tied")


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased, by HSIC1's three terms (Nguyen 2021, equation 3)."""

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        cross = a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
        return float((np.sum(a * b) + cross) / (n * (n - 3)))

    x, y = x - x.mean(0), y - y.mean(0)  # the value does not hang on it, its digits do
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def weights(run: Rerun, row: Row) -> float:
    """From whole tensors and full decompositions."""
    metric = row["metric"]
    named = {side: dict(run.nets[side].net.named_parameters()) for side in ("base", "tuned")}
    if row["unit"] not in named["base"] or row["unit"] not in named["tuned"]:
        raise Not("modules, heads and tensors under other names")
    path, _, leaf = row["unit"].rpartition(".")
    layers = [run.nets[side].net.get_submodule(path) for side in ("base", "tuned")]
    before, after = ((held_matrix(one) if leaf == "weight" else one.get_parameter(leaf)).detach().double().cpu().numpy() for one in layers)
    if before.shape != after.shape:
        raise Not("tensors of two shapes")
    delta = after - before
    if metric == "relative_norm":
        return float(np.linalg.norm(delta) / np.linalg.norm(before)) if delta.any() else 0.0
    if metric == "changed" and run.prepared.pair.tuned.adapter is None:
        return float(np.mean(delta != 0))
    if metric in ("spectral_norm", "stable_rank"):
        if min(delta.shape) > 2048:
            raise Not("matrices whose full decomposition would take minutes")
        values = np.linalg.svd(delta, compute_uv=False)
        return float(values[0] if metric == "spectral_norm" else (values**2).sum() / values[0] ** 2)
    raise Not("ranks and shares made of the values above")


def steering(run: Rerun, row: Row) -> float:
    """The mean difference, as the run saved it, added to the base's states."""
    if row["arm"] != "add" or row["control"] is not None:
        raise Not("projections into subspaces, which are fits; random and exchanged vectors")
    if row["metric"] not in LAW_METRICS:
        raise Not("side effects on texts")
    width, n_pos = window(row["unit"])
    if width > 1 or row["rank"] == 0:
        raise Not("windows")
    site = Site(row["layer"], row["site"])
    file = run.path / "steering" / f"{site}.safetensors"
    if not file.is_file():
        raise Not("vectors are kept at the closer layers alone")
    vector = load_vector(file)[1] * (1.0 if row["strength"] is None else row["strength"])
    length = len(run.ids("base", row["split"], row["prompt"])) if n_pos is None else n_pos
    return of_law(run, row, run_with(run, row, lambda: {site: Put(value=vector.expand(length, -1), add=True)}))


def rank(run: Rerun, row: Row) -> float:
    raise Not("ranks are chosen by cross-validation, and maps of each rank are not kept")


def behaviour(run: Rerun, row: Row) -> float:
    """How likely the models find what they do not say has no second way here; what they say has (see `answers`)."""
    raise Not("scores of answers; the answers that the record holds are generated again")


RECOMPUTE: dict[str, Callable[[Rerun, Row], float]] = {
    "divergence": divergence,
    "weights": weights,
    "grafting": grafting,
    "similarity": similarity,
    "patching": patching,
    "factorial": factorial,
    "transport": transport,
    "rank": rank,
    "steering": steering,
    "heads": heads,
    "attribution": attribution,
    "behaviour": behaviour,
}


LOGITS_APART = 20
"""Logits may be so many times sqrt(2 floor) apart."""


def answers(run: Rerun) -> list[tuple[str, str, str, str]]:
    """(prompt, side, recorded, generated again) of the answers that the record holds: transformers' own greedy generation, one prompt at a time.

    One that parts from the recorded answer at a token whose lead over the next is within rounding counts as the recorded one.
    """
    found = []
    record = run.manifest.get("behaviour") or {}
    for one in record.get("texts", []):
        for side in ("base", "tuned"):
            tokenizer = run.prepared.pair.tokenizer(side)
            with run.model(side) as model:
                ids = torch.tensor([run.ids(side, one["split"] or "probes", one["prompt"])], device=model.device)
                net: Any = model.net
                made = net.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                    max_new_tokens=min(record["max_tokens"], model.shape.context - ids.shape[1]),
                    eos_token_id=sorted(_ends(run, model)), pad_token_id=0, return_dict_in_generate=True, output_logits=True,
                )  # fmt: skip
                said = made.sequences[0, ids.shape[1] :].tolist()
                kept = said[: next((i for i, token in enumerate(said) if token in _ends(run, model)), len(said))]
                again = str(tokenizer.decode(kept, skip_special_tokens=True))
                texts = (
                    [str(tokenizer.decode(kept[:n], skip_special_tokens=True)) for n in range(1, len(kept) + 1)]
                    if again != one[side]
                    else []
                )
                leads = [made.logits[i][0].float().topk(2).values for i in parting(one[side], texts) if i < len(made.logits)]
                eps = 4 * torch.finfo(model.dtype).eps
                tied = any(first - second <= LOGITS_APART * math.sqrt(2 * run.floor) + eps * first.abs() for first, second in leads)
                found.append((one["prompt"], side, one[side], one[side] if tied else again))
    return found


def parting(recorded: str, texts: Sequence[str]) -> range:
    """The tokens one of which is the first that another text does not share with the recorded one; several, because a character may be spread over
    tokens. `texts` are that other one after each of its tokens."""
    strictly = next((i for i, text in enumerate(texts) if not recorded.startswith(text)), len(texts))
    surely = next((i for i, text in enumerate(texts) if not recorded.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))), len(texts))
    return range(strictly, surely + 1) if texts else range(0)
