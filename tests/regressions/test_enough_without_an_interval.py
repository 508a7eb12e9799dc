""" "One module is enough for 0.9 of D (L5.mlp: 0.913)" and "heads 5 and 4 have 65 %" had no interval, and the reported prompts chose how many were
named. A search that stopped at its budget was a headline."""

import re

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.grafting import findings as grafting_findings
from mechdiff.measures.grafting import words as grafting_words
from mechdiff.measures.heads import sets as sets_of_heads
from mechdiff.measures.heads import words as heads_words
from mechdiff.rows import OVERLAP, rows
from mechdiff.statistics import summary as statistics_summary
from report.small_runs import divergence, grafted, names
from said import refused, verdict

D = np.linspace(0.8, 1.2, 16)


def grafts(report: dict, select: dict | None = None) -> pl.DataFrame:
    parts = [divergence(D), divergence(D, "select"), grafted(report, D)]
    return pl.concat([*parts, grafted(select, D, split="select", seed=1)] if select else parts)


def sets(one: float, two: float) -> dict:
    """What the modules recover alone, and the greedy sets of one and two."""
    return {"alone": {"L5.mlp": one, "L3.attn": 0.1, "L4.mlp": 0.2}, "greedy": {"L5.mlp": one, "L5.mlp+L3.attn": two}}


def test_a_set_that_is_named_has_its_interval_and_is_not_said_to_be_enough() -> None:
    table = grafts(sets(0.913, 0.95), sets(0.92, 0.96))
    (said,) = grafting_words.which_module(table)
    assert re.search(
        r"one module, the smallest greedy set with 90 % of D on the validation prompts \(L5.mlp\), recovers 9\d(?:\.\d)? % \[95 % CI: .*, .*\]",
        said,
    )
    assert "enough" not in said


def test_how_many_modules_are_named_is_decided_on_other_prompts() -> None:
    table = grafts(sets(0.93, 0.97), sets(0.6, 0.96))
    found = grafting_findings.needed(table)
    assert found is not None
    assert (found.row["rank"], found.chosen_on, found.enough) == (2, "select", True)
    table = grafts(sets(0.6, 0.97), sets(0.93, 0.97))
    found = grafting_findings.needed(table)
    assert found is not None
    assert found.row["rank"] == 1
    assert found.row["share"] == pytest.approx(0.6, abs=0.1), "though it falls short on the reported prompts, and its interval shows it"


def test_a_search_that_stopped_at_its_budget_is_no_headline() -> None:
    table = grafts(sets(0.14, 0.256), sets(0.14, 0.26))
    summary = statistics_summary.summarise(table, NUMBERS)
    assert not any("2 modules" in sentence for sentence in verdict(table, summary, {}))
    (why,) = (one for one in refused(table, summary, {}) if "2 modules" in one)
    assert why.endswith("the search stopped at its budget")
    assert (
        "2 modules, the most that the search was allowed, stay under 90 % of D on the validation prompts: L5.mlp + L3.attn recover 27 % ["
        in why
    )


def test_a_set_that_stays_under_its_target_has_its_share_of_d_beside_the_way() -> None:
    """ "Stay under 0.9: L5.mlp + L3.attn, 0.93 of the way" gave the one number and named the other."""
    table = grafts(sets(0.4, 0.71), sets(0.4, 0.71))
    both = table.filter(pl.col("arm") == "greedy", pl.col("unit") == "L5.mlp+L3.attn", pl.col("split") == "report")
    way = both.with_columns(metric=pl.lit("fisher_overlap_nats"), value=pl.lit(0.93))
    whole = way.with_columns(measure=pl.lit("divergence"), metric=pl.lit("fisher_total_nats"), value=pl.lit(1.0))
    whole = whole.with_columns(
        pl.lit(None).cast(table.schema[name]).alias(name) for name in ("arm", "unit", "rank", "direction", "site", "layer")
    )
    said = grafting_words.how_many_modules(pl.concat([table, way, whole]))
    share = grafting_findings.needed(table)
    assert share is not None
    opening = "2 modules, the most that the search was allowed, stay under 90 % of D on the validation prompts: L5.mlp + L3.attn"
    assert said.startswith(f"{opening} recover {100 * share.row['share']:.0f} % [95 % CI: ")
    assert re.search(r"\] of D and bring the base 93(?:\.\d)? % .*of the way in logits$", said)


def test_all_modules_that_changed_are_no_budget() -> None:
    shares = {"alone": {"L5.mlp": 0.3, "L3.attn": 0.1}, "greedy": {"L5.mlp": 0.3, "L5.mlp+L3.attn": 0.5}}
    found = grafting_findings.needed(grafts(shares, shares))
    assert found is not None
    assert not found.at_budget


def heads(report: list[float], select: list[float] | None, *, whole: float = 0.8) -> tuple[pl.DataFrame, dict]:
    """What the first 1, 2, ... heads of the order 5, 4, 3, ... have of all six, which break `whole` of D."""
    n, parts = 6, [divergence(D), divergence(D, "select")]
    order = [5, 4, 3, 2, 1, 0]
    random = np.random.default_rng(0)
    for split, shares in (("report", report), ("select", select)):
        place = {
            "measure": "heads",
            "direction": "tuned<-base",
            "metric": "kl_own_nats",
            "arm": "contribution",
            "site": "attn_proj",
            "layer": 2,
        }
        for k, share in enumerate([*(shares or []), 1.0], start=1):
            chosen = sorted(order[:k])
            unit = "all" if share == 1.0 else f"head {chosen[0]}" if k == 1 else f"heads {','.join(map(str, chosen))}"
            noise = random.lognormal(0, 0.02 if share == 1.0 else 0.15, len(D))
            parts.append(rows(whole * share * D * noise, unit=unit, split=split, prompt=names(split, len(D)), **place))
        for head in range(n - 1):
            parts.append(rows(whole * 0.1 * D, unit=f"head {head}", split=split, prompt=names(split, len(D)), **place))
    return pl.concat(parts, rechunk=True), {"heads": {"closer_layers": [2], "greedy": {"tuned<-base": {"2": order}}}}


def test_heads_have_an_interval_and_their_number_is_chosen_on_select() -> None:
    table, manifest = heads([0.3, 0.46, 0.7, 0.8, 0.9], [0.35, 0.6, 0.7, 0.8, 0.9])
    summary = statistics_summary.summarise(table, NUMBERS)
    (said,) = heads_words.which_heads(table, summary, manifest)
    assert re.search(r"L2H5 and L2H4 have 4\d % \[95 % CI: \d\d, \d\d\] \(order and number chosen on the validation prompts", said)
    assert "L2H5 and L2H4 have 4" in verdict(table, summary, manifest)[-1]


@pytest.mark.parametrize(("shares", "k"), [([0.6, 0.2, 0.1, 0.1], 1), ([0.4, 0.3, 0.2, 0.1], 2), ([0.2, 0.2, 0.3, 0.3], 3)])
@pytest.mark.parametrize(
    ("direction", "way", "kl"), [("tuned<-base", "fisher_nats", "kl_own_nats"), ("base<-tuned", OVERLAP, "kl_other_nats")]
)
def test_how_many_heads_are_named_is_right_by_what_a_run_writes_on_select(
    shares: list[float], k: int, direction: str, way: str, kl: str
) -> None:
    """It was always one: in the currency that adds the select prompts have only the first 1, 2, ... heads, and so one single head, "all" of one."""
    parts = [divergence(D), divergence(D, "select")]
    place = {"measure": "heads", "direction": direction, "arm": "contribution", "site": "attn_proj", "layer": 2}
    prefixes = {"head 0": sum(shares[:1]), "heads 0,1": sum(shares[:2]), "heads 0,1,2": sum(shares[:3]), "all": 1.0}
    singles = {f"head {head}": share for head, share in enumerate(shares)}
    for split, added in (("report", singles | prefixes), ("select", prefixes)):
        at = place | {"split": split, "prompt": names(split, len(D))}
        parts += [rows(0.8 * share * D, metric=way, unit=unit, **at) for unit, share in added.items()]
        parts += [rows(0.8 * share**2 * D, metric=kl, unit=unit, **at) for unit, share in (singles | prefixes).items()]
    table = pl.concat(parts)
    summary = statistics_summary.summarise(table, NUMBERS)
    one = sets_of_heads.game(table, summary, direction, 2, added=True)
    there = sets_of_heads.game(table, summary, direction, 2, split="select", added=True)
    assert one is not None
    assert there is not None
    assert one.n == there.n == len(shares)
    found = sets_of_heads.half(table, summary, one, [0, 1, 2, 3])
    assert found is not None
    assert (len(found.heads), found.chosen_on) == (k, "select")
    assert found.share == pytest.approx(sum(shares[:k]))
    assert sets_of_heads.half(table, summary, one, [0, 1, 2, 3], 0.95) is None, "only all reach it"


def test_heads_whose_number_was_chosen_here_are_said_so_and_are_no_headline() -> None:
    table, manifest = heads([0.3, 0.55, 0.7, 0.8, 0.9], None)
    summary = statistics_summary.summarise(table, NUMBERS)
    (said,) = heads_words.which_heads(table, summary, manifest)
    assert "number on these prompts, so optimistically biased" in said
    assert not any("heads" in sentence for sentence in verdict(table, summary, manifest))
    assert any("how many are named was not chosen on other prompts" in one for one in refused(table, summary, manifest))
