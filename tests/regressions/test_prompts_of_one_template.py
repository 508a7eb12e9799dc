"""What a user saw: 32 prompts made of 8 templates were taken for 32, and intervals called 95 % held the truth in 64 to 84 % of studies."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import mechdiff
import runs
from mechdiff.architectures.sites import Site
from mechdiff.engine import counterfactuals
from mechdiff.maps.refits import permutations
from mechdiff.measures.behaviour import words as behaviour_words
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.measures.similarity import geometry as similarity_geometry
from mechdiff.prompts.sets import Prompt, cluster_names
from mechdiff.report import parts
from mechdiff.rows import rows
from mechdiff.statistics import intervals
from mechdiff.statistics import summary as statistics_summary
from mechdiff.statistics.clusters import clustered
from mechdiff.validate import skewed
from said import verdict

CELL = {"measure": "patching", "direction": "tuned<-base", "split": "report", "metric": "kl_own_nats", "layer": 1, "site": "attn_out"}


def lines(clusters: list[str | None], split: str = "report") -> list[dict]:
    """Lines of prompts.jsonl, by the cluster of p0, p1, ..."""
    return [{"split": split, "id": f"p{i}", **({} if one is None else {"cluster": one})} for i, one in enumerate(clusters)]


def table(values: list[float], **cell: object) -> pl.DataFrame:
    return rows(values, prompt=[f"p{i}" for i in range(len(values))], **{**CELL, **cell})


@pytest.mark.parametrize(("n_clusters", "size"), [(8, 4), (16, 2)])
@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_an_interval_of_clustered_prompts_holds_the_truth_as_often_as_it_says(n_clusters: int, size: int, correlation: float) -> None:
    """400 studies of 32 prompts, log-normal with CV 0.5. As 32 prompts their intervals hold the mean in 65 to 88 %."""
    repeats, n = 400, n_clusters * size
    values = skewed.in_clusters(np.random.default_rng(0), 0.5, n_clusters, size, correlation, repeats).reshape(n, repeats)
    frame = rows(values.T.flatten(), prompt=[f"p{i}" for i in range(n)] * repeats, **{**CELL, "layer": np.repeat(np.arange(repeats), n)})
    found = statistics_summary.summarise(frame, NUMBERS, prompts=lines([f"t{i // size}" for i in range(n)])).sort("layer")
    assert found["n"].unique().to_list() == [n_clusters]
    held = ((found["ci_low"] <= 1) & (found["ci_high"] >= 1)).mean()
    said = found["coverage"].mean()
    assert held >= said - 2 * np.sqrt(0.07 * 0.93 / repeats)
    low, high = intervals.mean_intervals(values)
    assert ((low <= 1) & (high >= 1)).mean() < 0.90, "prompts taken for independent are too sure"


def test_each_cluster_counts_once_whatever_its_size() -> None:
    found = clustered(table([1.0, 2.0, 6.0, 4.0]), lines(["a", "a", "a", None])).sort("prompt")
    assert dict(found.select("prompt", "value").iter_rows()) == {"a": 3.0, "p3": 4.0}
    assert statistics_summary.summarise(table([1.0, 2.0, 6.0, 4.0]), NUMBERS, prompts=lines(["a", "a", "a", None]))["mean"].item() == 3.5
    nan = clustered(table([1.0, float("nan"), float("nan"), float("nan")]), lines(["a", "a", "b", "b"])).sort("prompt")
    assert nan["value"].to_list() == [1.0, pytest.approx(float("nan"), nan_ok=True)]


def test_without_shared_clusters_nothing_changes_to_the_bit() -> None:
    frame = table([1.0, 2.0, 6.0, 4.0])
    for prompts in ([], lines([None] * 4), lines(["a", "b", "c", "d"])):
        assert clustered(frame, prompts) is frame
    assert clustered(frame, lines(["a", "a", "b", "b"], split="fit")).equals(frame)


def test_a_cluster_with_the_name_of_another_prompt_is_not_taken_for_it() -> None:
    found = clustered(table([1.0, 2.0, 6.0]), lines(["p2", "p2", None]))
    assert dict(found.select("prompt", "value").iter_rows()) == {"cluster p2": 1.5, "p2": 6.0}


def test_clusters_have_the_names_that_a_user_gave_and_prompts_of_one_text_share_one() -> None:
    prompts = [
        Prompt(id="a", text="1+1", meta={"cluster": "sums"}),
        Prompt(id="b", text="2+2", meta={"cluster": "sums"}),
        Prompt(id="c", text="twice"),
        Prompt(id="d", text="twice"),
        Prompt(id="e", text="alone"),
        Prompt(id="sums", text="another"),
    ]
    assert cluster_names(prompts) == ["sums", "sums", "c", "c", "e", "sums'"]


def test_shares_of_right_answers_are_no_longer_wilson_s_where_a_cluster_is_half_right() -> None:
    right = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    prompts = lines([f"t{i // 2}" for i in range(12)])
    of = {"metric": "top1_same"}
    found = statistics_summary.summarise(table(right, **of), NUMBERS, prompts=prompts).row(0, named=True)
    means = np.array(right).reshape(6, 2).mean(axis=1)
    low, high = intervals.mean_intervals(means[:, None])
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(low[0]), pytest.approx(high[0]))
    alike = statistics_summary.summarise(table([1.0, 1.0, 0.0, 0.0] * 3, **of), NUMBERS, prompts=prompts).row(0, named=True)
    low, high = intervals.wilson(np.array(0.5), 6)
    assert (alike["ci_low"], alike["ci_high"]) == (pytest.approx(float(low)), pytest.approx(float(high)))


def test_the_jackknife_of_cka_leaves_out_whole_clusters() -> None:
    """Of two copies of every state the delete-one spread says nothing: leaving out one copy hardly moves CKA."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 6))
    y = x + rng.normal(size=(20, 6))
    site = Site(0, "resid_post")

    def spread(copies: int, clusters: list[str | None]) -> float:
        states = [{site: torch.from_numpy(np.repeat(one, copies, axis=0))} for one in (x, y)]
        names = [f"p{i}" for i in range(20 * copies)]
        measured = similarity_formula.measure(*states, names, "report")
        found = (
            statistics_summary.summarise(measured, NUMBERS, prompts=lines(clusters)).filter(pl.col("metric") == "cka").row(0, named=True)
        )
        assert found["n"] == 20
        return float(found["ci_high"] - found["ci_low"])

    once, twice = spread(1, [None] * 20), spread(2, [f"t{i // 2}" for i in range(40)])
    assert twice == pytest.approx(once, rel=0.35), "copies tell nothing new"


def test_two_clusters_have_no_interval_and_no_test() -> None:
    prompts = lines([f"t{i // 8}" for i in range(16)])
    found = statistics_summary.summarise(table(list(np.linspace(1, 2, 16))), NUMBERS, prompts=prompts).row(0, named=True)
    assert (found["n"], found["ci_low"], found["ci_high"]) == (2, None, None)
    assert "few_prompts" in found["flag"]


@pytest.mark.parametrize("sizes", [[1] * 7, [3] * 10, [4, 4], [2, 1, 3, 3, 1], [5, 2, 1], [1, 1]])
def test_the_state_of_another_prompt_never_comes_from_the_same_template(sizes: list[int]) -> None:
    clusters = [name for name, size in enumerate(sizes) for _ in range(size)]
    np.random.default_rng(0).shuffle(clusters)
    for seed in range(20):
        found = counterfactuals.donors(clusters, seed)
        assert all(clusters[one] != clusters[donor] for one, donor in enumerate(found))
        if 2 * max(sizes) <= len(clusters):
            assert sorted(found) == list(range(len(clusters))), "every activation is used once"


def test_of_prompts_without_clusters_the_others_are_those_of_earlier_runs() -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4)).tolist()
    expected = dict(pairwise([*order, order[0]]))
    assert dict(enumerate(counterfactuals.donors(range(9), 4))) == expected
    assert counterfactuals.donors(["one"] * 4, 0) != list(range(4)), "of a single cluster another prompt all the same"


@pytest.mark.parametrize("clusters", [[0, 0, 1, 1, 2, 2, 3], [0, 1, 2, 0, 1, 2, 0, 1, 2], [0, 1, 2, 3]])
def test_random_pairings_move_clusters_whole(clusters: list[int]) -> None:
    size = Counter(clusters)
    by_refit = list(permutations(torch.tensor(clusters), 25, 0))
    for order in [*similarity_geometry.pairings(clusters, 25, seed=0), *by_refit]:
        assert sorted(order.tolist()) == list(range(len(clusters)))
        went = {(clusters[place], clusters[came]) for place, came in enumerate(order.tolist())}
        assert len(went) == len(size), "no cluster is torn apart"
        assert all(size[here] == size[there] for here, there in went)
    assert len({tuple(order.tolist()) for order in similarity_geometry.pairings(clusters, 25, seed=0)}) > 1


@pytest.fixture(scope="module")
def run(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts, four of each of six templates; templates are split whole: 8 to 16 report prompts are two to four."""
    folder = tmp_path_factory.mktemp("clusters")
    asked = [json.loads(line) for line in (pair / "prompts.jsonl").read_text().splitlines()]
    for i, one in enumerate(asked):
        one["meta"] = {"cluster": f"template {i // 4}"}
        one["id"] = f"q{i}"
    (folder / "report.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    patched = {"patching": {"sites": ["resid_post"], "arms": ["identity", "resample"]}}
    answered = {"behaviour": {"max_tokens": 4, "probes": False, "scored_prompts": 0, "spoken_prompts": 0}}
    measures = ["divergence", {"similarity": {"sites": ["resid_post"], "permutations": 19}}, patched, answered]
    given = {"report": str(folder / "report.jsonl")}
    runs.run(base=str(pair / "base"), tuned=str(pair / "tuned"), prompts=given, measures=measures, out=folder / "run")
    return folder / "run"


def test_a_run_s_numbers_count_templates_and_its_page_says_so(run: Path) -> None:
    written = [json.loads(line) for line in (run / "prompts.jsonl").read_text().splitlines()]
    assert {one["cluster"] for one in written} == {f"template {i}" for i in range(6)}
    summary = pl.read_parquet(run / "summary.parquet").filter(pl.col("n") > 0)
    assert summary["n"].max() == 6
    loaded = parts.load(run)
    assert len(loaded.prompt_rows) > len(loaded.rows)
    of_token = pl.col("unit").str.starts_with("token ").fill_null(False)
    assert loaded.rows.filter(~of_token)["prompt"].drop_nulls().n_unique() == 6
    assert loaded.prompt_rows["prompt"].drop_nulls().n_unique() == 24
    page = (run / "report.html").read_text()
    assert "24 test prompts are 6 independent ones" in page
    mean = loaded.prompt_rows.filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null())["value"].mean()
    said = summary.filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null(), pl.col("control").is_null())["mean"].item()
    assert said == pytest.approx(mean), "clusters of one size: the mean is the prompts' own"


def test_answers_count_templates_too_wherever_they_are_read(run: Path) -> None:
    loaded = parts.load(run)
    group, found = behaviour_words.on_report(loaded.rows, loaded.manifest)
    assert group is not None
    assert {one.n for one in found} == {6}
    finished = mechdiff.open_run(run)
    assert finished.verdict() == verdict(loaded.rows, loaded.summary, loaded.manifest)
    assert finished.verdict()[0].startswith("On 24 test prompts (6 clusters)")
    assert "(6 of 6 prompts would have to differ)" in finished.verdict()[0]
