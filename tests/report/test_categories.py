"""D by the categories that a user gave the prompts: a known shift comes out, clusters count once, and few prompts have no interval."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import runs
from mechdiff.measures.catalogue import NUMBERS, make_study
from mechdiff.measures.divergence import categories
from mechdiff.measures.divergence.page import divergence as section
from mechdiff.prompts.sets import Prompt, fields_of
from mechdiff.report import drawing
from mechdiff.report.parts import Drawn, Run, assembled, load
from mechdiff.rows import rows
from mechdiff.statistics.summary import summarise
from mechdiff.store.tables import read_prompts

SHIFT = 2.0
N = 16


def run_of(d: np.ndarray, fields: list[dict[str, str]], clusters: list[str] | None = None) -> Run:
    """A run whose report prompts have these D and fields."""
    names = [f"p{i:02d}" for i in range(len(d))]
    table = rows(d, measure="divergence", metric="kl_tuned_base_nats", split="report", prompt=names)
    prompts = [
        {"split": "report", "id": name, "cluster": cluster} | ({"fields": told} if told else {})
        for name, told, cluster in zip(names, fields, clusters or names, strict=True)
    ]
    return assembled(table, prompts, summarise(table, NUMBERS, prompts=prompts), {})


def shifted() -> tuple[np.ndarray, list[dict[str, str]]]:
    """Half of the prompts are sums, whose D is higher by SHIFT; the fields `answer` and `same` are no categories."""
    sums = np.arange(N) % 2 == 0
    d = 1 + SHIFT * sums + np.random.default_rng(0).uniform(-0.1, 0.1, N)
    return d, [{"category": "sums" if one else "prose", "answer": f"a{i}", "same": "x"} for i, one in enumerate(sums)]


def test_a_known_shift_between_two_categories_comes_out_with_intervals_that_hold_it() -> None:
    d, fields = shifted()
    run = run_of(d, fields)
    drawn, table = categories.parts(run, "report")
    assert isinstance(drawn, Drawn)
    assert table["title"] == "D by category, over 16 test prompts"
    assert table["columns"] == ["category", "D, nats", "prompts (clusters)"]
    (high, low) = table["rows"]
    assert [high[0], high[2]] == ["sums", "8"]
    assert [low[0], low[2]] == ["prose", "8"]
    ends = [[float(end) for end in cell[1].partition("[")[2].partition("]")[0].split(", ")] for cell in (high, low)]
    assert ends[0][0] < 1 + SHIFT < ends[0][1]
    assert ends[1][0] < 1 < ends[1][1]
    means = [float(cell[1].split()[0]) for cell in (high, low)]
    assert means == pytest.approx([d[::2].mean(), d[1::2].mean()], abs=0.005)
    svg = drawing.to_svg(drawn.chart(run.rows, run.summary, run.manifest, **drawn.options))
    assert svg.count("1 prompt") == N
    assert [one for one in section(run).parts if isinstance(one, dict) and one.get("title") == table["title"]] == [table]


def test_a_value_of_fewer_than_five_clusters_has_no_interval_and_prompts_of_one_cluster_count_once() -> None:
    d, _ = shifted()
    fields = [{"topic": "rare" if i < 4 else "frequent"} for i in range(N)]
    clusters = [f"c{i // 2}" for i in range(N)]
    _, table = categories.parts(run_of(d, fields, clusters), "report")
    lines = {line[0]: line for line in table["rows"]}
    assert lines["frequent"][2] == "12 (6)"
    assert "[" in lines["frequent"][1]
    assert lines["rare"][1:] == [f"{d[:4].mean():.2f} (n\u00a0=\u00a02)", "4 (2)"]


@pytest.mark.parametrize("n_values", [1, 13, N])
def test_a_field_of_one_value_or_of_too_many_is_no_category(n_values: int) -> None:
    d, _ = shifted()
    assert categories.parts(run_of(d, [{"field": f"v{i % n_values}"} for i in range(N)]), "report") == []


def test_prompts_without_the_field_are_left_out_and_said() -> None:
    d, fields = shifted()
    run = run_of(d, [told if i < 14 else {} for i, told in enumerate(fields)])
    _, table = categories.parts(run, "report")
    assert table["title"] == "D by category, over the 14 of 16 test prompts that have one"
    assert categories.parts(run_of(d, [{}] * N), "report") == []


def test_short_texts_of_meta_are_fields_and_a_cluster_is_none() -> None:
    meta = {"category": " sums ", "cluster": "c", "row": 3, "solution": "x" * 61, "empty": "  ", "tags": ["a"]}
    assert fields_of(Prompt(id="p", text="t", meta=meta)) == {"category": "sums"}


def test_the_fields_of_a_prompt_file_travel_to_the_page(pair: Path, tmp_path: Path) -> None:
    """From `meta` through prompts.jsonl; a prompt without such fields has none there, and rows are those of a study without them."""
    lines = [json.loads(line) for line in (pair / "prompts.jsonl").read_text().splitlines()]
    tables = []
    for name in ("with", "without"):
        told = [one | ({"meta": {"category": "ab"[i % 2]}} if i != 3 and name == "with" else {}) for i, one in enumerate(lines)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
        study = {"pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")}, "measures": ["divergence"]}
        runs.finish(make_study(study | {"prompts": {"report": str(tmp_path / f"{name}.jsonl")}}), tmp_path / name, device="cpu")
        tables.append(pl.read_parquet(tmp_path / name / "rows.parquet"))
    assert tables[0].equals(tables[1])
    kept = {one["id"]: one.get("fields") for one in read_prompts(tmp_path / "with")}
    assert kept == {one["id"]: None if i == 3 else {"category": "ab"[i % 2]} for i, one in enumerate(lines)}
    assert not any("fields" in one for one in read_prompts(tmp_path / "without"))
    _, table = categories.parts(load(tmp_path / "with"), "report")
    assert table["title"] == "D by category, over the 23 of 24 test prompts that have one"
    assert {line[0]: line[2] for line in table["rows"]} == {"a": "12", "b": "11"}
