"""Writes off the manifold: distances against scikit-learn and the definition, own states that pass one time in a hundred, and planted writes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.covariance import LedoitWolf

from mechdiff.labels import CROSSED, WITHIN
from mechdiff.measures.catalogue import CHAPTERS, EXPERIMENTS, NUMBERS, make_study
from mechdiff.measures.off_manifold import findings, formula, verify, words
from mechdiff.measures.off_manifold.page import off_manifold
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.rows import rows
from mechdiff.statistics import intervals
from mechdiff.statistics.clusters import clustered, unit_names
from mechdiff.statistics.summary import summarise
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
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


@pytest.mark.parametrize("n", [1, 2])
def test_no_distance_from_fewer_than_three_states_by_either_way(n: int) -> None:
    states, others = drawn(n, 24, 0), drawn(4, 24, 1)
    assert formula.cloud(states).distance(others).isnan().all()
    moved = others[0] - states.mean(0)
    assert (moved @ torch.linalg.solve(verify.shrunk(states - states.mean(0)), moved)).isnan()


def test_prompts_of_a_cluster_stay_in_one_part() -> None:
    assert formula.parts("abacdb", 3) == [[0, 2, 4], [1, 5], [3]]
    assert len(formula.parts(range(4), 10)) == 4


@pytest.mark.parametrize(("n", "kept"), [(19, 19), (98, 98), (99, 99), (199, 198), (999, 990)])
def test_so_many_own_distances_are_within_the_limit(n: int, kept: int) -> None:
    own = rows([float(i) for i in range(1, n + 1)], measure="off_manifold", direction="base<-base", split="report", layer=0, site="z",
               arm="oracle", metric="mahalanobis_sd", prompt=[str(i) for i in range(n)])  # fmt: skip
    assert findings.limits(own, {}).row(0) == ("base", 0, "z", n, n, kept)
    pairs = {"units": {"report": {str(i): f"c{i // 2}" for i in range(n - n % 2)}}}
    within = n if n < 198 else kept
    assert findings.limits(own, pairs).row(0) == ("base", 0, "z", n, n // 2 + n % 2, within)


def test_like_states_pass_the_limit_one_time_in_a_hundred_and_ten_times_a_state_always() -> None:
    """Held-out: 400 own states and as many others of the same kind; and the bound of few (one of n + 1)."""
    n, passed, far = 400, [], []
    for seed in range(10):
        own, like = drawn(n, 24, 2 * seed), drawn(n, 24, 2 * seed + 1)
        held_out, theirs, large = torch.zeros(n), torch.zeros(n), torch.zeros(n)
        for part in formula.parts(range(n), 10):
            cloud = formula.cloud(own[[i for i in range(n) if i not in part]])
            held_out[part], theirs[part], large[part] = (cloud.distance(one[part]).float() for one in (own, like, 10 * like))
        limit = held_out.sort().values[findings._kept(n, n) - 1]
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
        {"patching": {"sites": ["mlp_out", "resid_post"], "arms": ["identity", "mean", "resample"], "map_prompts": 0}},
        "off_manifold",
    ]
    with study(base, edited(base, edits.edit_mlp), measures=measures, texts=[f"{text} {i}" for i, text in enumerate(TEXTS * 2)]) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


def test_own_states_that_are_written_back_are_as_far_as_they_were(ordinary: Run) -> None:
    """Below the edit the other model's states are the running model's own."""
    here = ordinary.rows.filter(pl.col("measure") == "off_manifold", pl.col("layer") == 0, pl.col("split") == "report")
    distances = pl.col("metric") == "mahalanobis_sd"
    own = here.filter(pl.col("arm") == "oracle", pl.col("direction") == WITHIN[0], distances).sort("site", "prompt")["value"]
    for direction in CROSSED:
        same = here.filter(pl.col("arm") == "identity", pl.col("direction") == direction).sort("site", "prompt")
        np.testing.assert_allclose(same.filter(distances)["value"], own, rtol=1e-4)
        np.testing.assert_allclose(same.filter(pl.col("metric") == "norm_ratio")["value"], 1, rtol=1e-6)
        runner = direction.partition("<-")[0]
        along = here.filter(pl.col("metric") == "mahalanobis_answer_sd", pl.col("direction").str.starts_with(runner)).sort("site", "prompt")
        ours, theirs = (along.filter(pl.col("arm") == arm)["value"] for arm in ("oracle", "identity"))
        assert len(ours) > 0
        np.testing.assert_allclose(theirs, ours, rtol=1e-4)
        np.testing.assert_allclose(same.filter(pl.col("metric") == "norm_ratio_answer")["value"], 1, rtol=1e-6)


def test_the_sentence_and_the_tables_have_the_numbers_of_the_rows(ordinary: Run) -> None:
    written = findings.writes(ordinary.rows, ordinary.manifest).filter(pl.col("arm") == "identity")
    beyond = int((written["distance"] > written["limit"]).sum())
    (said,) = lead(ordinary, CHAPTERS["off_manifold"])
    assert f"Of {len(written)} patches of the other model's activation" in said
    assert f" {beyond} lie beyond all {len(TEXTS) * 2} of the running model's own activations" in said
    site, edit, _ = off_manifold(ordinary).parts
    at_decision = [line for line in edit["rows"] if "along the answers" not in line[0]]
    assert {line[2] for line in at_decision} == {str(len(written) // 2)}
    assert (len(at_decision), len(edit["rows"])) == (5, 7)
    effects = ordinary.summary.filter(pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("share").is_not_null())
    assert float(site["rows"][0][2].removesuffix(" %")) / 100 == pytest.approx(effects["share"].max(), abs=0.006)  # type: ignore[type-var]


def far_and_near(run: Run, factor: float) -> Run:
    """The run as if every write were so many times as far."""
    moved = (pl.col("measure") == "off_manifold") & (pl.col("metric") == "mahalanobis_sd") & (pl.col("arm") != "oracle")
    table = run.rows.with_columns(value=pl.when(moved).then(pl.col("value") * factor).otherwise("value"))
    return Run(rows=table, summary=summarise(table, NUMBERS), manifest=run.manifest)


def test_the_sentence_says_that_more_are_beyond_only_where_the_interval_does(ordinary: Run) -> None:
    (far,), (near,) = (words.lead(far_and_near(ordinary, factor)) for factor in (100, 0.01))
    assert "that the model never has" in far
    assert " 0 lie beyond" in near
    high = intervals.wilson(np.zeros(1), findings.patches(ordinary.rows, {})["prompts"])[1][0]  # type: ignore[index]
    assert f"a share of 0 % [95 % CI: 0, {100 * high:.0f}]" in near
    assert "could not be shown" in near
    few = ordinary.rows.filter((pl.col("arm") != "oracle") | (pl.col("split") == "report"))
    few = few.filter(pl.col("prompt").is_in(few["prompt"].drop_nulls().unique().sort().head(8)))
    assert words.lead(Run(rows=few, summary=ordinary.summary, manifest=ordinary.manifest)) == []


def test_the_tuned_models_own_activations_are_no_writes_into_it(ordinary: Run) -> None:
    """Those of other prompts are among the states that writes are held against; in the base they are another model's."""
    donors = ordinary.rows.filter(pl.col("measure") == "off_manifold", pl.col("arm") == "resample")
    assert set(donors["direction"]) == {"base<-tuned"}


def test_a_map_whose_rank_differs_by_layer_is_one_edit(ordinary: Run) -> None:
    mapped = (pl.col("measure") == "off_manifold") & (pl.col("arm") == "mean")
    rank = pl.when(mapped).then("layer").otherwise("rank")
    table = ordinary.rows.with_columns(arm=pl.when(mapped).then(pl.lit("rrr")).otherwise("arm"), rank=rank)
    steered = table.with_columns(arm=pl.when(pl.col("arm") == "rrr").then(pl.lit("ablate")).otherwise("arm"))
    n_layers = int(ordinary.rows["layer"].max()) + 1  # type: ignore[arg-type]
    lines, by_rank = (findings.by_edit(one, {}).filter(~pl.col("arm").is_in(["identity", "resample"])) for one in (table, steered))
    assert (len(lines), lines["sites"].to_list(), lines["rank"].null_count()) == (2, [2 * n_layers] * 2, 2)
    assert sorted(by_rank["rank"]) == sorted([*range(n_layers)] * 2)


def test_prompts_are_counted_and_intervals_are_over_their_clusters(ordinary: Run) -> None:
    prompts = sorted({(split, prompt) for split, prompt in ordinary.rows.select("split", "prompt").drop_nulls().iter_rows()})
    told = [{"split": split, "id": prompt, "cluster": i // 2 * 2} for i, (split, prompt) in enumerate(prompts)]
    units: dict[str, dict[str, str]] = {}
    for (split, prompt), unit in unit_names(told).items():
        units.setdefault(split, {})[prompt] = unit
    assert units
    run = Run(
        rows=clustered(ordinary.rows, told),
        summary=ordinary.summary,
        manifest={**ordinary.manifest, "units": units},
        prompt_rows=ordinary.rows,
    )
    alone, together = (findings.patches(one.prompt_rows, one.manifest) for one in (ordinary, run))
    assert alone
    assert together
    same = ("writes", "prompts", "own", "part")
    assert [alone[name] for name in same] == [together[name] for name in same]
    assert together["clusters"] < together["prompts"]
    assert together["own_clusters"] < together["own"]
    cluster = {one["id"]: str(one["cluster"]) for one in told if one["split"] == "report"}
    assert together["clusters"] == len(set(cluster.values()))
    written = findings.writes(ordinary.rows, {}).filter(pl.col("arm") == "identity").with_columns(pl.col("prompt").replace(cluster))
    counts = written.group_by("prompt").agg(pl.col("beyond").sum(), of=pl.len()).sort("prompt")
    _, low, high = intervals.share_intervals(counts["beyond"].to_numpy().astype(float)[:, None], counts["of"].to_numpy().astype(float))
    assert [together["low"], together["high"]] == pytest.approx([low[0], high[0]], abs=0.02)  # another order of clusters has other draws
    line = findings.by_edit(run.prompt_rows, run.manifest).row(0, named=True)
    assert words.in_clusters("24 prompts", line) == f"24 prompts in {line['clusters']} clusters"


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("fit", lambda i: {"id": f"f{i}", "meta": {"cluster": i % 2}}),
        ("fit", lambda i: {"id": f"g{i}", "meta": {"cluster": i % 3}}),
        ("report", lambda i: {"id": f"r{i}", "meta": {"cluster": i % 2}}),
        ("neutral", lambda i: {"id": f"n{i}", "text": f"Another one {i}"}),
    ],
    ids=["clusters of training prompts", "their ids", "clusters of test prompts", "unrelated prompts"],
)
def test_what_the_distances_depend_on_is_in_the_key(pair: Path, tmp_path: Path, file: str, other: Any) -> None:
    for name in ("fit", "report", "neutral"):
        lines = [{"id": f"{name[0]}{i}", "text": f"Of {name} {i}", "meta": {"cluster": i % 3}} for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def keys() -> list[str]:
        steering = {"contrast": True, "neutral": str(tmp_path / "neutral.jsonl"), "side_prompts": 6}
        asked = {
            "pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")},
            "prompts": {name: str(tmp_path / f"{name}.jsonl") for name in ("fit", "report")},
            "measures": ["divergence", "patching", {"steering": steering}, "off_manifold"],
        }
        plan = prepare(make_study(asked), RunOptions(), EXPERIMENTS).plan
        return [cell_hash(cell.key) for cell in plan.cells if cell.stage == "off_manifold"]

    before = keys()
    lines = [json.loads(line) | other(i) for i, line in enumerate((tmp_path / f"{file}.jsonl").read_text().splitlines())]
    (tmp_path / f"{file}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    after = keys()
    assert len(before) == len(after) > 0
    assert not set(before) & set(after)
