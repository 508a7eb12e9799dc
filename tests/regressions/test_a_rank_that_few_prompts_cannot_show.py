"""What a user saw: "the change has rank 10" of 16 prompts, which can show 11; "it is the same on every prompt" of a change of which half varies."""

import re

import polars as pl
import pytest
import torch

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.rank import findings as rank_findings
from mechdiff.measures.rank import formula as rank_formula
from mechdiff.measures.rank.words import clause, how_many_dimensions
from mechdiff.measures.transport.formula import Sample
from mechdiff.report.headlines import admit
from mechdiff.report.parts import Run
from mechdiff.statistics import summary as statistics_summary

REPORT = 20


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(base: torch.Tensor, change: torch.Tensor) -> pl.DataFrame:
    """Rows of the rank at one site; the last prompts are reported, the others are fitted on."""
    parts = [
        Sample(base=base[rows], tuned=(base + change)[rows], groups=torch.arange(len(base[rows])))
        for rows in (slice(-REPORT), slice(-REPORT, None))
    ]
    return rank_formula.measure([parts[0]], [parts[1]], layers=[3], kind="mlp_out", prompt_ids=[f"p{i}" for i in range(REPORT)])


def said(table: pl.DataFrame) -> str:
    return " ".join(how_many_dimensions(table, statistics_summary.summarise(table, NUMBERS)))


def claimed(sentence: str) -> int | None:
    """The rank that is claimed to be that of the change; none where it is only bounded, or cannot be told."""
    found = re.search(r"sees (\d+) dimension|has rank (\d+)", sentence)
    return int(found[1] or found[2]) if found else None


@pytest.mark.parametrize("spectrum", ["flat", "1/i"])
@pytest.mark.parametrize("n", [12, 16, 32, 64, 128])
def test_the_number_of_prompts_is_not_said_to_be_the_rank_of_a_full_rank_change(n: int, spectrum: str) -> None:
    """A linear change of all 64 dimensions, without noise: 8, 11, 24, 50 and 64 were said to be its rank."""
    for seed in range(3):
        sizes = torch.ones(64) if spectrum == "flat" else 1 / torch.arange(1, 65)
        states = normal(n + REPORT, 64, seed=seed) * sizes
        table = measured(states, states @ torch.linalg.qr(normal(64, 64, seed=seed + 50))[0] * 0.5)
        sentence = said(table)
        assert claimed(sentence) in (None, 64), sentence
        assert f"{n} training prompts can show" in sentence or "too few prompts to tell" in sentence.lower()
        summary = statistics_summary.summarise(table, NUMBERS)
        assert not [one for one in clause(Run(rows=table, summary=summary, manifest={})) if admit(one) is None], (
            "nothing of it stands in the verdict"
        )


@pytest.mark.parametrize("noise", [0.05, 0.5])
@pytest.mark.parametrize("planted", [0, 1, 4])
def test_a_planted_rank_is_found_and_said_where_there_are_prompts_enough(planted: int, noise: float) -> None:
    states = normal(64 + REPORT, 24, seed=1)
    change = states @ normal(24, planted, seed=2) @ normal(planted, 24, seed=3) + normal(24, seed=4)
    change = change + noise * normal(64 + REPORT, 24, seed=5) * max(float((change - change.mean(0)).std()), 0.01)
    table = measured(states, change)
    sentence = said(table)
    if planted:
        assert claimed(sentence) == planted, sentence
        assert "64 training prompts" in sentence
        (candidate,) = clause(Run(rows=table, summary=statistics_summary.summarise(table, NUMBERS), manifest={}))
        assert admit(candidate) is None
    else:
        assert "regression sees no dimension of the change at L3.mlp_out" in sentence
        varies = {0.05: "<0.001 %", 0.5: "0.0015 %"}[noise]
        assert f"It is the same vector on every prompt: {varies} [95 % CI: " in sentence


@pytest.mark.parametrize("planted", [1, 2, 4])
@pytest.mark.parametrize("n", [12, 16, 32])
def test_no_bound_from_few_prompts_is_above_the_rank_that_was_planted(n: int, planted: int) -> None:
    for seed in range(5):
        states = normal(n + REPORT, 64, seed=seed) / torch.arange(1, 65)
        change = states @ normal(64, planted, seed=seed + 7) @ normal(planted, 64, seed=seed + 8)
        change = change + 0.3 * change.std() * normal(n + REPORT, 64, seed=seed + 9)
        table = measured(states, change)
        one = rank_findings.strongest(table, statistics_summary.summarise(table, NUMBERS))
        assert one is not None
        assert one.says in ("nothing", "unseen") or one.rank <= planted


@pytest.mark.parametrize("seed", range(4))
def test_a_change_of_which_half_varies_is_not_the_same_on_every_prompt(seed: int) -> None:
    """24 prompts, 256 dimensions: a constant, and a part of rank 8 that the state does not predict, 48 % of the squared change."""
    states, constant = normal(24 + REPORT, 256, seed=seed), normal(256, seed=seed + 10)
    free = normal(24 + REPORT, 8, seed=seed + 20) @ torch.linalg.qr(normal(256, 8, seed=seed + 30))[0].T
    change = constant + free * (0.92 * constant.square().sum() / free.square().sum(-1).mean()).sqrt()
    table = measured(states, change)
    sentence = said(table)
    assert "same" not in sentence
    assert claimed(sentence) is None
    found = rank_findings.varying(table, "L3.mlp_out")
    assert found is not None
    assert found[0] == pytest.approx(0.48, abs=0.12)
    assert found[1] < 0.48 < found[2]


@pytest.mark.parametrize(("varies", "same"), [(0.01, True), (0.08, False), (0.2, False)])
def test_a_change_is_the_same_on_every_prompt_only_where_an_interval_says_so(varies: float, same: bool) -> None:
    states, constant, noise = normal(24 + REPORT, 64, seed=0), normal(64, seed=1), normal(24 + REPORT, 64, seed=2)
    change = constant + noise * (varies / (1 - varies) * constant.square().sum() / noise.square().sum(-1).mean()).sqrt()
    assert ("It is the same vector on every prompt" in said(measured(states, change))) == same


def test_old_rows_without_what_varies_say_nothing_of_it() -> None:
    states = normal(24 + REPORT, 64, seed=0)
    table = measured(states, normal(64, seed=1).expand(24 + REPORT, 64) + 1e-3 * normal(24 + REPORT, 64, seed=3))
    assert "same" not in said(table.filter(~pl.col("metric").str.contains("squared")))
