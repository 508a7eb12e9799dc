"""What a user saw: "at L29.resid_post the base, its own state mapped, recovers 0.999 of D", where the logits are read; and 22 of 30 sites where the
best of four maps "comes closer", each site at 5 %."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.rank import findings as rank_findings
from mechdiff.measures.rank.words import how_many_dimensions
from mechdiff.measures.transport import findings as transport_findings
from mechdiff.measures.transport.words import carried, clause, comes_closer
from mechdiff.report import effect_shares
from mechdiff.report.headlines import admit
from mechdiff.report.parts import Run
from mechdiff.rows import rows
from mechdiff.statistics import summary as statistics_summary

pytestmark = pytest.mark.ci

MAPS = effect_shares.ARMS[4:8]
N_LAYERS = 6


def prompts(split: str, n: int) -> list[str]:
    return [f"{split}{i}" for i in range(n)]


def of_pair(n: int, random: np.random.Generator, splits: tuple[str, ...] = ("select", "report")) -> dict[str, np.ndarray]:
    """D of each prompt, by split."""
    return {split: random.lognormal(0, 0.3, n) for split in splits}


def divergence(d: dict[str, np.ndarray]) -> list[pl.DataFrame]:
    parts = []
    for split, value in d.items():
        for metric in ("kl_tuned_base_nats", "kl_base_tuned_nats"):
            parts.append(rows(value, measure="divergence", metric=metric, split=split, prompt=prompts(split, len(value))))
    return parts


def study(*, select: bool = True, kinds: tuple[str, ...] = ("resid_post",), seed: int = 0) -> pl.DataFrame:
    """Maps at every layer. The last block's output carries everything, and a constant there too; before it the constant is best at layer 3."""
    random = np.random.default_rng(seed)
    d = of_pair(10, random, ("select", "report") if select else ("report",))
    parts = divergence(d)
    constant = [0.1, 0.2, 0.5, 0.86, 0.7, 0.99]
    ceiling = [0.2, 0.4, 0.6, 0.92, 0.95, 1.0]
    for kind in kinds:
        for layer in range(N_LAYERS):
            at = {"measure": "transport", "layer": layer, "site": kind}
            for split, value in d.items():
                there = {**at, "split": split, "prompt": prompts(split, len(value))}
                if split == "report":
                    parts.append(
                        rows(value * (1 - ceiling[layer]), direction="base<-tuned", metric="kl_other_nats", arm="identity", **there)
                    )
                for arm, more in (("shift", 0.0), *((one, 0.0) for one in MAPS)):
                    left = value * (1 - constant[layer] - more) * random.lognormal(0, 0.05, len(value))
                    parts.append(rows(left, direction="base<-base", metric="kl_other_nats", arm=arm, **there))
    return pl.concat(parts, rechunk=True)


@pytest.mark.parametrize("select", [True, False])
def test_the_site_that_is_spoken_of_is_before_the_readout(select: bool) -> None:
    table = study(select=select)
    summary = statistics_summary.summarise(table, NUMBERS)
    assert transport_findings.readout_site(table) == "L5.resid_post"
    best = transport_findings.carried(table, summary)
    assert best
    assert (best.name, best.chosen_on) == (("L3.resid_post", "select") if select else ("L4.resid_post", "report"))
    assert ("optimistically biased" in carried(table, summary)[0]) != select


def test_the_constant_stands_beside_the_patch_with_its_interval() -> None:
    table = study()
    summary = statistics_summary.summarise(table, NUMBERS)
    first, second, _ = carried(table, summary)
    assert first.startswith(
        "At L3.resid_post adding one fixed vector (the training prompts' mean activation difference) to the base recovers 8"
    )
    assert ", and patching in the tuned activation itself 92 %" in first
    assert "(site and conditions selected on the validation prompts)" in first
    assert ", not significantly different from the vector: " in second
    (candidate,) = clause(Run(rows=table, summary=summary, manifest={}))
    assert admit(candidate) is None
    assert candidate.text.startswith("at L3.resid_post (selected on other prompts) adding one fixed vector"), "the verdict says so too"


def test_a_constant_that_recovers_nothing_is_no_headline() -> None:
    table = study()
    of_shift = (pl.col("arm") == "shift") & (pl.col("split") == "report")
    noise = pl.Series(np.random.default_rng(1).normal(1.0, 2.0, len(table)))
    worse = table.with_columns(value=pl.when(of_shift).then(noise).otherwise("value"))
    (candidate,) = clause(Run(rows=worse, summary=statistics_summary.summarise(worse, NUMBERS), manifest={}))
    assert admit(candidate) is not None
    assert "[95 % CI: −" in carried(worse, statistics_summary.summarise(worse, NUMBERS))[0], "the interval keeps its signs"


def test_the_rank_is_not_that_of_the_last_blocks_output_either() -> None:
    table = study()
    names = {"rank_chosen": 2.0, "rank_best": 2.0, "rank_uncentred": 3.0, "rank_limit": 50.0, "rank_prompts": 64.0}
    of_rank = [
        rows(list(names.values()), metric=list(names), measure="rank", split="fit", layer=layer, site="resid_post", arm="rrr")
        for layer in range(N_LAYERS)
    ]
    both = pl.concat([table, *of_rank])
    one = rank_findings.strongest(both, statistics_summary.summarise(both, NUMBERS))
    assert one is not None
    assert one.name == "L3.resid_post", "the site that maps are spoken of at"
    alone = pl.concat([of_rank[2], of_rank[5]])
    assert "L2.resid_post" in how_many_dimensions(alone, statistics_summary.summarise(alone, NUMBERS))[0]


def close(random: np.random.Generator, n: int, *, better: float = 0.0, sites: int = 24) -> pl.DataFrame:
    """Closeness at `sites` layers: every map is as close as the shift in expectation, but for one at layer 0."""
    value = random.lognormal(0, 0.3, n)
    parts = divergence({"report": value})
    for layer in range(sites):
        for arm in ("identity", "shift", *MAPS):
            mean = {"identity": 1.0}.get(arm, 0.1 * (1 - better * (arm == "rrr" and layer == 0)))
            left = value * mean * random.lognormal(0, 0.4, n)
            at = {"measure": "transport", "split": "report", "layer": layer, "site": "attn_out", "arm": arm, "prompt": prompts("report", n)}
            parts.append(rows(left, direction="tuned<-base", metric="kl_own_nats", **at))
            parts.append(rows(left, direction="base<-base", metric="kl_other_nats", **at))
    return pl.concat(parts, rechunk=True)


@pytest.mark.parametrize("count", [transport_findings.closer, transport_findings.beaten])
def test_maps_that_are_no_better_are_counted_in_one_study_in_twenty(count) -> None:
    """14 to 18 % of sites were counted, in nearly every study at least one."""
    random, studies = np.random.default_rng(3), 0
    for number in range(40):
        found = count(close(random, (10, 32)[number % 2]))
        assert found
        assert (found.sites, found.maps) == (24, 96)
        studies += found.better > 0
    assert studies <= 6, "5 % of 40 is 2; 7 or more has a chance of 0.3 %"


def test_a_map_that_is_better_at_one_site_is_still_counted_there() -> None:
    found = transport_findings.closer(close(np.random.default_rng(4), 24, better=0.8))
    assert found
    assert found.better == 1
    assert found.best
    assert (found.best["name"], found.best["arm"]) == ("L0.attn_out", "rrr")
    assert 0 < found.best["low"] < 0.8 < found.best["high"] + 0.1
    said = comes_closer(found)
    assert said.startswith("At 1 of 24 sites a fitted map comes closer than")
    assert said.endswith("(p ≤ 0.05, corrected for all 96 maps).")
