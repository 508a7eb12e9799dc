"""What two fine-tunes are compared by: the same numbers of each run, as functions of how often each prompt counts.

    effective number   n = (sum s)^2 / sum s^2 of shares s >= 0     1: all in one place; N: evenly over all N
    localisation       1 - (n - 1) / (N - 1)                        1: one place; 0: everywhere alike

of the shares of D that writing the other model's output of one attention or MLP carries over (N = 2 x blocks; negative shares, and cells under three
noise floors, count 0), the mean of both directions. The same effective number over blocks, over modules whose weights are grafted alone, and over
single heads. Shares of writes need not add up to 1 and an effective number does not need that: it is about how they are spread.

When it misleads: noise spreads shares, so an effective number of few prompts, or of a small D, is too large; a change that only works through several
modules together has small single shares everywhere. Effective number as the inverse of Simpson's index: Hill 1973; participation ratio.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from jaxtyping import Float
from numpy import ndarray

from mechdiff.report import findings, findings_behaviour, findings_grafting, findings_rank, findings_transport, findings_weights, statistics
from mechdiff.report.findings import BREAKAGE, EFFECTS, RECOVERY
from mechdiff.report.memory import once
from mechdiff.report.parts import Run
from mechdiff.report.resampling import Estimate, Statistic, estimate
from mechdiff.report.wording_behaviour import METRICS, on_report

OUTPUTS = ("attn_out", "mlp_out")
TOP_HEADS = 5


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One number of a run. `estimate` is None for what is counted and not sampled, such as tensors."""

    axis: str
    name: str
    value: float
    estimate: Estimate | None = None
    prompts: tuple[str, ...] = ()
    """On which it was taken; two runs are compared prompt by prompt where these are the same."""
    of: str = ""
    """Out of how many, where it is a number of places."""

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end, 95 %; NaN where it has none."""
        return self.estimate.interval if self.estimate else (np.nan, np.nan)


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What writes do on the prompts that are reported: nats broken or recovered."""

    places: list[tuple[int, str]]
    """(layer, site or head) of each column."""
    prompts: list[str]
    effect: Float[ndarray, "prompt column"]
    total: Float[ndarray, " prompt"]
    """D."""


def effective_number(shares: Float[ndarray, "draw column"]) -> Float[ndarray, " draw"]:
    """(sum s)^2 / sum s^2 of the positive shares; NaN where there is none."""
    positive = np.maximum(shares, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return positive.sum(axis=1) ** 2 / (positive**2).sum(axis=1)


@once
def effects(
    run: Run, direction: str, *, measure: str = "patching", split: str | None = None, sites: Sequence[str] = OUTPUTS
) -> Effects | None:
    """Single writes of one direction: of whole sites (patching), or of single heads' contributions. None where they were not run."""
    rows = run.rows
    split = split or findings.reported(rows, measure)
    column = "site" if measure == "patching" else "unit"
    where = (
        pl.col("site").is_in(list(sites)) & pl.col("unit").is_null() if measure == "patching" else pl.col("unit").str.starts_with("head ")
    )
    arm = "identity" if measure == "patching" else "contribution"
    values = findings_transport.written(rows, direction, EFFECTS[direction], measure=measure, split=split)
    values = values.filter(where, pl.col("arm") == arm, *(pl.col(name).is_null() for name in ("control", "rank", "strength")))
    of = findings_transport.totals(rows, split).filter(pl.col("total").is_finite())
    values = values.join(of, on="prompt", how="semi").with_columns(name=pl.format("{} {}", "layer", column))
    if values.is_empty():
        return None
    prompts, names, table = statistics.prompt_matrix(values, by="name")
    total = of.filter(pl.col("prompt").is_in(prompts)).sort("prompt")["total"].to_numpy()
    if not len(prompts) or total.mean() <= 0:
        return None
    effect = table if direction == BREAKAGE else total[:, None] - table
    floor = _floor(rows, split, direction)
    effect = np.where(np.abs(effect.mean(axis=0)) > statistics.FLOORS * floor, effect, 0.0)
    places = [(int(name.split(" ", 1)[0]), name.split(" ", 1)[1]) for name in names]
    return Effects(places=places, prompts=prompts, effect=effect, total=total)


def _floor(rows: pl.DataFrame, split: str | None, direction: str) -> float:
    found = statistics.noise_floors(rows).filter(
        pl.col("runner") == direction.split("<-")[0], pl.col("split").eq_missing(split), pl.col("metric") == EFFECTS[direction]
    )["floor"]
    return float(found.to_numpy().max()) if len(found) else 0.0


def quantities(run: Run, seed: int) -> dict[str, Quantity]:
    """Every number that a run can be compared by, by its key; what was not measured is absent. `seed` draws the prompts."""
    found: dict[str, Quantity] = {}
    for part in (_divergence, _where, _weights, _grafting, _transport, _rank, _heads, _behaviour):
        found |= part(run, seed)
    return found


def _quantity(axis: str, name: str, statistic: Statistic, prompts: list[str], seed: int, of: str = "") -> Quantity:
    made = estimate(statistic, len(prompts), seed=seed)
    return Quantity(axis=axis, name=name, value=made.value, estimate=made, prompts=tuple(prompts), of=of)


def _mean(values: Float[ndarray, " prompt"]) -> Statistic:
    return lambda counts: counts @ values / counts.sum(axis=1)


def _divergence(run: Run, seed: int) -> dict[str, Quantity]:
    d = findings.d_per_prompt(run.rows).filter(pl.col("d").is_finite()).sort("prompt")
    if d.is_empty():
        return {}
    prompts = d["prompt"].to_list()
    found = {"d": _quantity("difference", "D = KL(tuned ‖ base), nats", _mean(d["d"].to_numpy()), prompts, seed)}
    if d["same"].null_count() == 0:
        other = 1.0 - d["same"].cast(pl.Float64).to_numpy()
        found["other_token"] = _quantity("difference", "other first choice, share of prompts", _mean(other), prompts, seed)
    return found


def _of_side(side: Effects, counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, " draw"]:
    return effective_number(counts @ side.effect)


def _where(run: Run, seed: int) -> dict[str, Quantity]:
    sides = {direction: side for direction in EFFECTS if (side := effects(run, direction))}
    if len(sides) < len(EFFECTS):
        return {}
    one = sides[BREAKAGE]
    if any(side.prompts != one.prompts or side.places != one.places for side in sides.values()):
        return {}
    layers = np.array([layer for layer, _ in one.places])
    blocks = (layers[:, None] == np.unique(layers)).astype(float)
    n, n_blocks = len(one.places), blocks.shape[1]

    def both(measure: Callable[[Float[ndarray, "draw column"]], Float[ndarray, " draw"]]) -> Statistic:
        return lambda counts: np.mean([measure(counts @ side.effect) for side in sides.values()], axis=0)

    def depth(shares: Float[ndarray, "draw column"]) -> Float[ndarray, " draw"]:
        positive = np.maximum(shares, 0.0)
        return positive @ (layers / max(1, layers.max())) / positive.sum(axis=1)

    sites = both(effective_number)
    words = {BREAKAGE: "breakage", RECOVERY: "recovery"}
    told: dict[str, tuple[str, Statistic, str]] = {
        "sites": ("effective number of outputs, mean of both", sites, f"{n}"),
        "localisation": ("localisation: 1 one output, 0 all alike", lambda counts: 1 - (sites(counts) - 1) / max(1, n - 1), ""),
        "blocks": ("effective number of blocks", both(lambda shares: effective_number(np.maximum(shares, 0) @ blocks)), f"{n_blocks}"),
        "depth": ("centre of the effect: 0 first block, 1 last", both(depth), ""),
    }
    for direction, side in sides.items():
        name = f"effective number of outputs, {words[direction]}"
        told[f"sites_{words[direction]}"] = (name, partial(_of_side, side), f"{n}")
    return {key: _quantity("where", name, how, one.prompts, seed, of) for key, (name, how, of) in told.items()}


def _weights(run: Run, seed: int) -> dict[str, Quantity]:
    changed = findings_weights.how_many(run.summary)
    if changed is None or not changed.changed:
        return {}
    tensors = findings_weights.tensors(run.summary)
    by_block = tensors.filter(pl.col("layer").is_not_null()).group_by("layer").agg((pl.col("relative_norm") ** 2).sum())
    found = {"tensors": Quantity(axis="weights", name="share of tensors that changed", value=changed.changed / changed.tensors)}
    if not by_block.is_empty():
        spread = float(effective_number(by_block["relative_norm"].to_numpy()[None])[0])
        found["weight_blocks"] = Quantity(
            axis="weights", name="effective number of blocks, by (‖ΔW‖/‖W‖)²", value=spread, of=f"{changed.layers}"
        )
    for metric, name in (("numerical_rank", "median rank of a matrix's change"), ("energy_rank_90", "median rank with 90 % of its energy")):
        if metric in tensors.columns and len(ranks := tensors.filter(pl.col("relative_norm") > 0)[metric].drop_nulls()):
            found[metric] = Quantity(axis="weights", name=name, value=float(np.median(ranks.to_numpy())))
    return found


def _grafting(run: Run, seed: int) -> dict[str, Quantity]:
    prompts, alone, total = findings_grafting.alone_by_prompt(run.rows)
    if not len(prompts) or total.mean() <= 0:
        return {}

    def modules(counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, " draw"]:
        return effective_number(counts @ (total[:, None] - alone))

    name = "effective number of modules, tuned weights alone"
    return {"modules": _quantity("weights", name, modules, prompts, seed, f"{alone.shape[1]}")}


def _transport(run: Run, seed: int) -> dict[str, Quantity]:
    best = findings_transport.carried(run.rows, run.summary)
    if best is None:
        return {}
    split = findings.reported(run.rows, "transport")
    written = findings_transport.plain(findings_transport.written(run.rows, findings_transport.TRANSPORT, "kl_other_nats", split=split))
    written = written.filter(pl.col("layer") == best.layer, pl.col("site") == best.site)
    cells, matrix, total = findings_transport.cells(written, findings_transport.totals(run.rows, split))
    arms = cells["arm"].to_list()
    of = findings_transport.totals(run.rows, split).filter(pl.col("total").is_finite())
    prompts = sorted(set(written["prompt"]) & set(of["prompt"]))
    if best.arm not in arms or len(prompts) != len(total):
        return {}
    own = matrix[:, arms.index(best.arm)]
    found = {
        "mapped": _quantity(
            "transport", f"recovered by the best map, at {best.name}", lambda counts: 1 - counts @ own / (counts @ total), prompts, seed
        )
    }
    if best.trivial in arms:
        constant = matrix[:, arms.index(best.trivial)]
        name = f"recovered by a constant, at {best.name}"
        found["constant"] = _quantity("transport", name, lambda counts: 1 - counts @ constant / (counts @ total), prompts, seed)
        found["map_gain"] = _quantity(
            "transport", "what the map adds to a constant", lambda counts: counts @ (constant - own) / (counts @ total), prompts, seed
        )
    return found


def _rank(run: Run, seed: int) -> dict[str, Quantity]:
    one = findings_rank.strongest(run.rows, run.summary)
    if one is None or one["rank_chosen"] is None:
        return {}
    found = {
        "rank": Quantity(axis="rank", name=f"rank of the change, by cross-validation, at {one['name']}", value=float(one["rank_chosen"]))
    }
    chosen = findings_rank.chosen(run.summary)
    of_kind = chosen.filter(pl.col("site") == one["site"])["rank_chosen"].drop_nulls()
    if len(of_kind) > 1:
        name = f"rank of the change, mean over blocks, {one['site']}"
        found["rank_blocks"] = Quantity(axis="rank", name=name, value=float(of_kind.to_numpy().mean()), of=f"{len(of_kind)} blocks")
    prompts, ranks, values = findings_rank.by_rank(run.rows, one["name"])
    if len(ranks) < 2:
        return found
    for wanted in (findings_rank.HALF, findings_rank.MOST):

        def enough(counts: Float[ndarray, "draw prompt"], wanted: float = wanted) -> Float[ndarray, " draw"]:
            means = counts @ values / counts.sum(axis=1, keepdims=True)
            gain = means[:, :1] - means
            passed = gain >= wanted * gain.max(axis=1, keepdims=True)
            return np.where(
                gain.max(axis=1) > 0, np.array(ranks, float)[passed.argmax(axis=1)], 0.0
            )  # where nothing is gained, no rank is needed

        name = f"rank with {wanted:.0%} of the largest gain, at {one['name']}"
        found[f"rank_{wanted:.0%}"] = _quantity("rank", name, enough, prompts, seed)
    return found


def _heads(run: Run, seed: int) -> dict[str, Quantity]:
    sides = {direction: side for direction in EFFECTS if (side := effects(run, direction, measure="heads"))}
    if not sides:
        return {}
    one = next(iter(sides.values()))
    if any(side.prompts != one.prompts for side in sides.values()):
        return {}

    def heads(counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, " draw"]:
        return np.mean([effective_number(counts @ side.effect) for side in sides.values()], axis=0)

    found = {"heads": _quantity("heads", "effective number of heads, by single effect", heads, one.prompts, seed, f"{len(one.places)}")}
    order = head_order(run)
    if order is not None:
        leaders = {direction: set(order[direction][:TOP_HEADS]) for direction in sides}
        top = {direction: [i for i, place in enumerate(side.places) if place in leaders[direction]] for direction, side in sides.items()}

        def leading(counts: Float[ndarray, "draw prompt"]) -> Float[ndarray, " draw"]:
            parts = []
            for direction, side in sides.items():
                positive = np.maximum(counts @ side.effect, 0.0)
                parts.append(positive[:, top[direction]].sum(axis=1) / positive.sum(axis=1))
            return np.mean(parts, axis=0)

        name = f"share of the {TOP_HEADS} strongest heads (chosen on select) in all single effects"
        found["top_heads"] = _quantity("heads", name, leading, one.prompts, seed)
    return found


@once
def head_order(run: Run) -> Mapping[str, list[tuple[int, str]]] | None:
    """Heads of the network by their single effect on the select prompts, strongest first, by direction; None without them."""
    found = {}
    for direction in EFFECTS:
        chosen = effects(run, direction, measure="heads", split="select")
        if chosen is None:
            return None
        means = chosen.effect.mean(axis=0)
        found[direction] = [chosen.places[place] for place in np.argsort(-means, kind="stable")]
    return found


def _behaviour(run: Run, seed: int) -> dict[str, Quantity]:
    group, compared = on_report(run.rows, run.manifest)
    found: dict[str, Quantity] = {}
    if group is None:
        return found
    for one in compared:
        prompts, change = findings_behaviour.change_by_prompt(group, one.metric)
        if len(prompts) >= findings_behaviour.FEW:
            name = f"{METRICS.get(one.metric, one.metric)}: tuned − base"
            found[f"behaviour_{one.metric}"] = _quantity("behaviour", name, _mean(change), prompts, seed)
    return found
