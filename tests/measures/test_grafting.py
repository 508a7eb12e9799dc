"""Grafting says which weights carry a planted difference; v of any set is that of the merged network."""

from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from drawn import examples
from mechdiff.audit import whole
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import kl_nats as kl_fast
from mechdiff.engine.grafts import grafted
from mechdiff.engine.overlap import total_nats
from mechdiff.errors import SelfCheckError
from mechdiff.measures.grafting import formula as grafting_formula
from mechdiff.measures.grafting.formula import Lattice, Prompts, best_alone, greedy, lattice, ranks
from mechdiff.models.modules import ChangedUnits, Unit, changes_between, changes_of_adapter, tensors_of
from mechdiff.models.pair import Model, wrap
from mechdiff.rows import KEY, OVERLAP
from mechdiff.validate import edits
from mechdiff.validate.made import tiny_net
from oracles.laws import kl_nats
from oracles.merged import logits as naive
from oracles.merged import merged
from pico import CONFIGS, each, moved, pico, prompts, twin, with_adapter

FLOOR = 1e-9
"""Nats: float32 rounding of these small models."""


def split(base: Model, tuned: Model, name: str = "report", n: int = 6, seed: int = 2) -> Prompts:
    ids = prompts(n, seed=seed, shortest=4, longest=22)
    laws = {model.side: torch.stack([capture(model, one, [], [0]).logits for one in ids]) for model in (base, tuned)}
    names = [f"{name}{i}" for i in range(n)]
    return Prompts(split=name, names=names, ids=ids, base_logits=laws["base"], tuned_logits=laws["tuned"])


def measure(
    model: Model,
    changes: ChangedUnits,
    report: Prompts,
    select: Prompts | None = None,
    *,
    truncate: bool = True,
    max_tokens: int | None = None,
) -> pl.DataFrame:
    """The rows of every arm, as a run's cells make them one by one."""
    bench = lattice(model, changes, report, max_tokens=max_tokens)
    choosing = lattice(model, changes, select, max_tokens=max_tokens) if select else None
    frames = [grafting_formula.ends(bench), grafting_formula.curves(bench, changes.units)]
    if choosing and changes.units:
        frames.append(grafting_formula.searched(bench, choosing))
    if truncate and changes.units:
        frames.append(grafting_formula.truncation(bench, grafting_formula.few(bench, choosing)))
    return pl.concat(frames)


def measured(change, **how: object) -> tuple[pl.DataFrame, ChangedUnits, Prompts]:
    """The rows of a planted pair, what had changed, and the reported prompts."""
    net = tiny_net()
    base = wrap(net, side="base", ref="planted base")
    tuned = twin(base, change)
    changes, report = changes_between(base, tensors_of(tuned)), split(base, tuned)
    return measure(base, changes, report, split(base, tuned, "select", seed=3), max_tokens=64, **how), changes, report


def of(rows: pl.DataFrame, arm: str, unit: str | None = None, split: str = "report", metric: str = "kl_other_nats") -> pl.DataFrame:
    """One arm's rows of a place such as "L1.attn" or "head"."""
    rows = rows.filter(pl.col("arm") == arm, pl.col("split") == split, pl.col("metric") == metric)
    place = pl.when(pl.col("layer").is_null()).then("site").otherwise(pl.format("L{}.{}", "layer", "site"))
    return rows if unit is None else rows.filter(place == unit)


def d_of(report: Prompts) -> list[float]:
    return kl_fast(report.tuned_logits, report.base_logits).tolist()


# ---- planted truths ----------------------------------------------------------------------------------------------------------------


def test_p0_no_unit_changed_and_d_is_0():
    rows, changes, _ = measured(edits.identical)
    assert changes.record()["changed_units"] == []
    assert sorted(rows["arm"].unique()) == ["all", "none"]
    assert rows["value"].to_list() == [0] * 24


def head_three(net: nn.Module) -> None:
    """P4a: the columns of head 3 in the output projection of block 1."""
    net.model.layers[1].self_attn.o_proj.weight[:, 24:32].mul_(2)


def lora_merged(net: nn.Module) -> None:
    """P5: rank 4 on queries and values of block 2."""
    for path in ("q_proj", "v_proj"):
        edits.add_low_rank(net.model.layers[2].self_attn.get_submodule(path).weight, 4, 1.5)


def head_noise(net: nn.Module) -> None:
    """P12: noise on the unembedding alone."""
    net.lm_head.weight.add_(torch.randn(net.lm_head.weight.shape, generator=edits.generator()) * net.lm_head.weight.std() * 0.3)


ONE_UNIT = {
    "P2": (edits.edit_attention, "L1.attn", 2), "P3": (edits.edit_mlp, "L1.mlp", 2), "P4": (head_three, "L1.attn", 8),
    "P5": (lora_merged, "L2.attn", 4), "P12": (head_noise, "head", 64), "P13": (edits.edit_embedding, "embed", 64),
}  # fmt: skip


@pytest.mark.parametrize("truth", ONE_UNIT)
def test_the_one_changed_unit_carries_all(truth):
    change, unit, rank = ONE_UNIT[truth]
    rows, changes, report = measured(change)
    assert [str(one) for one in changes.units] == [unit], "what did not change is no unit and costs nothing"
    total = d_of(report)
    assert min(total) > 1e-3
    assert of(rows, "none")["value"].to_list() == total
    for arm in ("alone", "from_below", "from_above"):
        assert of(rows, arm, unit)["value"].max() <= FLOOR
        assert of(rows, arm).height == 6
    assert of(rows, "all")["value"].max() <= FLOOR
    sets = of(rows, "greedy")
    assert sets["unit"].unique().to_list() == [unit]
    assert sets["rank"].unique().to_list() == [1]
    cut = of(rows, "truncate")
    assert cut.filter(rank=0)["value"].to_list() == total * 2
    for whose in (cut.filter(pl.col("unit") == "all"), of(rows, "truncate", unit)):
        assert whose["rank"].max() == rank, "the causal rank of the update"
        assert whose.filter(rank=rank)["value"].max() <= FLOOR
        assert whose.filter(pl.col("rank").is_between(1, rank - 1))["value"].min() > 1e-6


def test_p5_a_lora_that_peft_holds_is_its_merged_twin():
    base = with_adapter(layers_to_transform=[2], target_modules=["q_proj", "v_proj"], r=4)
    changes = changes_of_adapter(base)
    assert [str(unit) for unit in changes.units] == ["L2.attn"]
    with grafted(base, changes, changes.units):
        tuned_logits = split(base, wrap(base.net, side="tuned", ref="on")).tuned_logits
    report = split(base, wrap(base.net, side="tuned", ref="off"))
    report = Prompts(split="report", names=report.names, ids=report.ids, base_logits=report.base_logits, tuned_logits=tuned_logits)
    rows = measure(base, changes, report)
    assert of(rows, "none")["value"].min() > 1e-4
    assert of(rows, "alone", "L2.attn")["value"].max() <= FLOOR
    assert of(rows, "truncate").filter(rank=4)["value"].max() <= FLOOR
    assert sorted(of(rows, "truncate")["rank"].unique()) == [0, 1, 2, 4]
    assert rows.filter(arm="greedy").height == 0


def test_p8_noise_everywhere_comes_together_along_the_network():
    rows, changes, report = measured(edits.add_noise(0.05), truncate=False)
    total = d_of(report)
    matrices = ["embed", *[f"L{layer}.{kind}" for layer in range(4) for kind in ("attn", "mlp")], "head"]
    assert [str(unit) for unit in changes.units] == matrices, "norms are vectors and stay"
    mean = {arm: [of(rows, arm, unit)["value"].mean() for unit in matrices] for arm in ("alone", "from_below", "from_above")}
    assert mean["from_below"][-1] <= FLOOR
    assert mean["from_above"][0] <= FLOOR
    assert mean["from_below"][0] == mean["alone"][0]
    assert mean["from_above"][-1] == mean["alone"][-1]
    d = sum(total) / len(total)
    assert all(later < earlier + 0.15 * d for earlier, later in pairwise(mean["from_below"]))
    assert all(later > earlier - 0.15 * d for earlier, later in pairwise(mean["from_above"]))
    assert min(mean["alone"]) > 0.2 * d, "no unit carries it"


def test_p13_every_other_unit_alone_leaves_d():
    """Units that did change, but only by a bit, beside an embedding that carries all."""

    def change(net: nn.Module) -> None:
        edits.edit_embedding(net)
        for block in net.model.layers:
            block.mlp.up_proj.weight[0, 0] += 1e-6

    rows, _, report = measured(change, truncate=False)
    assert of(rows, "alone", "embed")["value"].max() <= 1e-8
    for layer in range(4):
        assert of(rows, "alone", f"L{layer}.mlp")["value"].to_list() == pytest.approx(d_of(report), rel=1e-3)


# ---- v(S) of any set ---------------------------------------------------------------------------------------------------------------


@cache
def bench(name: str) -> tuple[Lattice, Model]:
    base = pico(name)
    tuned = twin(base, moved)
    return lattice(base, changes_between(base, tensors_of(tuned)), split(base, tuned, n=4), max_tokens=40), tuned


@examples(60)
@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_v_of_any_set_is_that_of_the_merged_network(name, data):
    found, tuned = bench(name)
    units = found.changes.units
    cut = data.draw(st.integers(0, len(units)))
    drawn = data.draw(st.sets(st.sampled_from(units), max_size=4))
    chosen = data.draw(st.sampled_from([drawn, set(units[:cut]) ^ drawn, set(units[cut:]) ^ drawn]))
    law = naive(merged(found.model.net, tuned.net, [str(unit) for unit in chosen]), found.prompts.ids)
    expected = [kl_nats(reference, run) for reference, run in zip(found.prompts.tuned_logits, law, strict=True)]
    assert found.value(chosen).tolist() == pytest.approx(expected, abs=1e-6, rel=1e-4)


def test_runs_start_as_high_as_they_can():
    found, _ = bench("llama")
    units = found.changes.units
    number = {str(unit): i for i, unit in enumerate(units)}
    assert found.start([]) == ("base", 4)
    assert found.start(units) == ("tuned", 4)
    assert found.start([Unit("head")]) == ("base", 4)
    assert found.start([Unit("mlp", 2), Unit("norm", 3)]) == ("base", 2)
    assert found.start([Unit("embed")]) == ("tuned", 0)
    for unit in ("L0.attn", "L2.attn", "L2.mlp"):
        assert found.start(units[: number[unit] + 1]) == ("tuned", int(unit[1]))
        assert found.start(units[number[unit] :]) == ("base", int(unit[1]))


def test_below_the_first_change_both_models_are_one():
    base = pico("gemma3")

    def change(net: nn.Module) -> None:
        net.model.layers[2].mlp.down_proj.weight.mul_(1.5)

    tuned = twin(base, change)
    found = lattice(base, changes_between(base, tensors_of(tuned)), split(base, tuned))
    assert found.changes.units == (Unit("mlp", 2),)
    for mine, theirs in zip(found.below["base"], found.below["tuned"], strict=True):
        same = [torch.equal(a, b) for a, b in zip(mine.residuals, theirs.residuals, strict=True)]
        assert same == [True, True, True, False, False]


@pytest.mark.parametrize("name", each())
def test_in_half_precision_both_ends_hold_within_the_stated_tolerance(name):
    base = pico(name, dtype=torch.bfloat16)
    tuned = twin(base, moved)
    found = lattice(base, changes_between(base, tensors_of(tuned)), split(base, tuned), max_tokens=64)
    assert found.value(()).mean() > 30 * found.floor_nats


def test_truncation_goes_from_the_base_to_the_tuned_model():
    rows, _, report = measured(moved)
    cut = of(rows, "truncate")
    everything = cut.filter(pl.col("unit") == "all")
    assert everything.filter(rank=0)["value"].to_list() == d_of(report)
    assert everything.filter(rank=64)["value"].max() <= FLOOR
    assert sorted(everything["rank"].unique()) == [0, 1, 2, 4, 8, 16, 32, 64]
    mean = everything.group_by("rank").agg(pl.col("value").mean()).sort("rank")["value"].to_list()
    assert mean[1] > mean[4] > mean[6] > mean[7]
    assert cut.filter(pl.col("unit").is_null())["layer"].n_unique() > 1
    assert set(cut.filter(pl.col("unit").is_null())["site"].unique()) <= {"attn", "mlp", "embed", "head"}, "norms have no matrices"


def test_greedy_sets_are_nested_and_chosen_on_select_only():
    rows, changes, _ = measured(moved, truncate=False)
    assert len(changes.units) == 15
    for where in ("select", "report"):
        sets = of(rows, "greedy", split=where).select("rank", "unit").unique().sort("rank")
        assert sets["rank"].to_list() == list(range(1, 9))
        names = [set(unit.split("+")) for unit in sets["unit"]]
        assert all(small < large for small, large in pairwise(names))
    chosen = of(rows, "greedy", split="select")
    mean = chosen.group_by("rank").agg(pl.col("value").mean()).sort("rank")["value"].to_list()
    assert mean[-1] < mean[0]
    assert set(rows.filter(pl.col("split") == "select")["arm"]) == {"greedy", "none", "alone"}, "what the search ran anyway"


def test_greedy_takes_the_best_next_unit_of_the_best_alone():
    found, _ = bench("llama")
    pool = best_alone(found, 5)
    assert pool[0] == min(found.changes.units, key=lambda unit: float(found.value([unit]).mean()))
    first, second = greedy(found, candidates=5, picks=2)
    assert first == (pool[0],)
    best = min((unit for unit in pool if unit != pool[0]), key=lambda unit: float(found.value([pool[0], unit]).mean()))
    assert set(second) == {pool[0], best}


def test_ranks_of_a_curve():
    assert ranks(1, 1) == [0, 1]
    assert ranks(8, 8) == [0, 1, 2, 4, 8]
    assert ranks(576, 256) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 576]


# ---- rows and checks ---------------------------------------------------------------------------------------------------------------


def test_overlaps_of_grafts_end_at_0_and_at_the_whole_and_are_those_of_merged_networks():
    base = wrap(tiny_net(), side="base", ref="planted base")
    tuned = twin(base, moved)
    report = split(base, tuned)
    rows = measure(base, changes_between(base, tensors_of(tuned)), report, truncate=False)
    total = total_nats(report.base_logits, report.tuned_logits).numpy()
    np.testing.assert_allclose(of(rows, "all", metric=OVERLAP)["value"], total, rtol=1e-4, atol=1e-9)
    assert (of(rows, "none", metric=OVERLAP)["value"] == 0).all()
    by_hand = twin(base, lambda net: None)
    with torch.no_grad():
        for name, tensor in by_hand.net.named_parameters():
            if ".layers.1.mlp." in name:
                tensor.copy_(dict(tuned.net.named_parameters())[name])
    logits = torch.stack([capture(by_hand, ids, [], [0]).logits for ids in report.ids])
    laws = zip(report.base_logits.double(), report.tuned_logits.double(), logits.double(), strict=True)
    expected = [whole.overlap(own, other, run) for own, other, run in laws]
    np.testing.assert_allclose(of(rows, "alone", "L1.mlp", metric=OVERLAP)["value"], expected, rtol=1e-3, atol=1e-8)


def test_rows_have_a_unique_key_and_two_metrics():
    rows, _, report = measured(moved)
    assert rows.select(KEY).is_duplicated().sum() == 0
    assert set(rows["metric"]) == {"kl_other_nats", OVERLAP}
    assert rows["measure"].unique().to_list() == ["grafting"]
    assert rows["direction"].null_count() == rows.height
    assert rows["value"].is_not_nan().all()
    assert of(rows, "alone", "L1.norm")["prompt"].to_list() == list(report.names)


def test_a_smaller_vocabulary_of_the_tokenizer_cuts_padding_rows():
    base = pico("llama")
    tuned = twin(base, moved)
    full = split(base, tuned)
    report = Prompts(
        split="report", names=full.names, ids=full.ids, base_logits=full.base_logits[:, :250], tuned_logits=full.tuned_logits[:, :250]
    )
    rows = measure(base, changes_between(base, tensors_of(tuned)), report, truncate=False)
    assert of(rows, "all")["value"].max() <= FLOOR


def test_a_difference_that_is_no_weight_stops_the_run():
    base = pico("llama")

    def other_norm(net: nn.Module) -> None:
        net.lm_head.weight.mul_(1.01)
        for block in net.model.layers:
            block.input_layernorm.variance_epsilon = 10.0

    tuned = twin(base, other_norm)
    changes = changes_between(base, tensors_of(tuned))
    with pytest.raises(SelfCheckError, match=r"with all 1 changed units grafted the base is .* nats from the tuned model"):
        measure(base, changes, split(base, tuned))
    same = ChangedUnits(units=())
    with pytest.raises(SelfCheckError, match=r"no tensor differs, yet the base is .* nats from the tuned model"):
        measure(base, same, split(base, tuned))


def test_logits_of_another_model_stop_the_run():
    base = pico("llama")
    tuned = twin(base, moved)
    right, wrong = split(base, tuned), split(pico("llama", seed=5), tuned)
    mixed = Prompts(split="report", names=right.names, ids=right.ids, base_logits=wrong.base_logits, tuned_logits=right.tuned_logits)
    with pytest.raises(SelfCheckError, match=r"with nothing grafted v is .* and D is"):
        measure(base, changes_between(base, tensors_of(tuned)), mixed)
