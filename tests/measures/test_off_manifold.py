"""Writes off the manifold: distances against scikit-learn and the definition, own states that pass one time in a hundred, and planted writes."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.covariance import LedoitWolf

from mechdiff.labels import CROSSED, WITHIN
from mechdiff.measures.catalogue import CHAPTERS, NUMBERS
from mechdiff.measures.off_manifold import findings, formula, verify, words
from mechdiff.measures.off_manifold.page import off_manifold
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.rows import rows
from mechdiff.statistics.summary import summarise
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, study


def drawn(n: int, d: int, seed: int, wide: float = 30.0) -> torch.Tensor:
    """States with a mean far from 0 and a few wide dimensions, as residual streams have."""
    random = torch.Generator().manual_seed(seed)
    scales = torch.ones(d, dtype=torch.float64)
    scales[:3] = wide
    return 5 + torch.randn(n, d, generator=random, dtype=torch.float64) * scales


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 40), (200, 16), (3, 64)])
def test_distances_are_those_of_scikit_learn_and_of_the_definition(n: int, d: int) -> None:
    states, others = drawn(n, d, 0), drawn(9, d, 1) * 2
    theirs = LedoitWolf().fit(states.numpy())
    found = formula.cloud(states).distance(others)
    np.testing.assert_allclose(found.square().numpy(), theirs.mahalanobis(others.numpy()), rtol=1e-7)
    covariance = verify.shrunk(states - states.mean(0))
    np.testing.assert_allclose(covariance.numpy(), theirs.covariance_, rtol=1e-9, atol=1e-9)
    moved = others - states.mean(0)
    torch.testing.assert_close(found, (moved * torch.linalg.solve(covariance, moved.T).T).sum(-1).sqrt(), rtol=1e-7, atol=0)


def test_no_distance_from_states_that_are_all_the_same() -> None:
    assert formula.cloud(torch.full((6, 4), 3.0, dtype=torch.float64)).distance(drawn(2, 4, 0)).isnan().all()


def test_prompts_of_a_cluster_stay_in_one_part() -> None:
    assert formula.parts("abacdb", 3) == [[0, 2, 4], [1, 5], [3]]
    assert len(formula.parts(range(4), 10)) == 4


@pytest.mark.parametrize(("n", "kept"), [(19, 19), (98, 98), (99, 99), (199, 198), (999, 990)])
def test_so_many_own_distances_are_within_the_limit(n: int, kept: int) -> None:
    own = rows([float(i) for i in range(1, n + 1)], measure="off_manifold", direction="base<-base", split="report", layer=0, site="z",
               arm="oracle", metric="mahalanobis_sd", prompt=[str(i) for i in range(n)])  # fmt: skip
    assert findings.limits(own).row(0) == ("base", 0, "z", n, kept)


def test_like_states_pass_the_limit_one_time_in_a_hundred_and_ten_times_a_state_always() -> None:
    """Held-out: 400 own states and as many others of the same kind; and the bound of few (one of n + 1)."""
    n, passed, far = 400, [], []
    for seed in range(10):
        own, like = drawn(n, 24, 2 * seed), drawn(n, 24, 2 * seed + 1)
        held_out, theirs, large = torch.zeros(n), torch.zeros(n), torch.zeros(n)
        for part in formula.parts(range(n), 10):
            cloud = formula.cloud(own[[i for i in range(n) if i not in part]])
            held_out[part], theirs[part], large[part] = (cloud.distance(one[part]).float() for one in (own, like, 10 * like))
        limit = held_out.sort().values[findings._kept(n) - 1]
        passed.append((theirs > limit).float().mean().item())
        far.append((large > limit).float().mean().item())
    assert 0.004 < np.mean(passed) < 0.018
    assert min(far) > 0.99


@pytest.fixture(scope="module")
def ordinary() -> Iterator[Run]:
    """A tiny network with one MLP edited: its states and the base's differ from that block on."""
    base = made.tiny_net()
    measures = [
        "divergence",
        {"patching": {"sites": ["mlp_out", "resid_post"], "arms": ["identity", "mean"], "map_prompts": 0}},
        "off_manifold",
    ]
    with study(base, edited(base, edits.edit_mlp), measures=measures, texts=[f"{text} {i}" for i, text in enumerate(TEXTS * 2)]) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


def test_own_states_that_are_written_back_are_as_far_as_they_were(ordinary: Run) -> None:
    """Below the edit the other model's states are the running model's own."""
    here = ordinary.rows.filter(pl.col("measure") == "off_manifold", pl.col("layer") == 0, pl.col("split") == "report")
    own = here.filter(pl.col("arm") == "oracle", pl.col("direction") == WITHIN[0]).sort("site", "prompt")["value"]
    for direction in CROSSED:
        same = here.filter(pl.col("arm") == "identity", pl.col("direction") == direction).sort("site", "prompt")
        np.testing.assert_allclose(same.filter(pl.col("metric") == "mahalanobis_sd")["value"], own, rtol=1e-4)
        np.testing.assert_allclose(same.filter(pl.col("metric") == "norm_ratio")["value"], 1, rtol=1e-6)


def test_the_sentence_and_the_tables_have_the_numbers_of_the_rows(ordinary: Run) -> None:
    written = findings.writes(ordinary.rows).filter(pl.col("arm") == "identity")
    beyond = int((written["distance"] > written["limit"]).sum())
    (said,) = lead(ordinary, CHAPTERS["off_manifold"])
    assert f"Of {len(written)} writes" in said
    assert f" {beyond} lie beyond all {len(TEXTS) * 2} of the running model's own activations" in said
    site, edit, _ = off_manifold(ordinary).parts
    assert {line[2] for line in edit["rows"]} == {str(len(written) // 2)}
    effects = ordinary.summary.filter(pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("share").is_not_null())
    assert float(site["rows"][0][2]) == pytest.approx(effects["share"].max(), abs=0.006)  # type: ignore[type-var]


def far_and_near(run: Run, factor: float) -> Run:
    """The run as if every write were so many times as far."""
    moved = (pl.col("measure") == "off_manifold") & (pl.col("metric") == "mahalanobis_sd") & (pl.col("arm") != "oracle")
    table = run.rows.with_columns(value=pl.when(moved).then(pl.col("value") * factor).otherwise("value"))
    return Run(rows=table, summary=summarise(table, NUMBERS), manifest=run.manifest)


def test_the_sentence_says_that_more_are_beyond_only_where_the_interval_does(ordinary: Run) -> None:
    (far,), (near,) = (words.lead(far_and_near(ordinary, factor)) for factor in (100, 0.01))
    assert "that the model never has" in far
    assert " 0 lie beyond" in near
    assert "could not be shown" in near
    few = ordinary.rows.filter((pl.col("arm") != "oracle") | (pl.col("split") == "report"))
    few = few.filter(pl.col("prompt").is_in(few["prompt"].drop_nulls().unique().sort().head(8)))
    assert words.lead(Run(rows=few, summary=ordinary.summary, manifest=ordinary.manifest)) == []
