"""Comparisons of planted runs: what is local and what is spread is known, and so is what cannot be told apart."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechdiff import api
from mechdiff.errors import RunError
from mechdiff.report import compare, statistics
from mechdiff.report.findings_compare import OUTPUTS
from report.planted_run import planted_manifest, planted_rows, write_run

EVIL = "<script>alert(1)</script>"
LAYERS, PROMPTS = 6, 16


def spread_out(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The same run with every output carrying an equal part of D, but for noise."""
    rng = np.random.default_rng(seed)
    d = rows.filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null(), pl.col("control").is_null())
    d = d.select("split", "prompt", d="value")
    outputs = (
        (pl.col("measure") == "patching") & pl.col("site").is_in(OUTPUTS) & (pl.col("arm") == "identity") & pl.col("control").is_null()
    )
    joined = rows.join(d, on=["split", "prompt"], how="left", maintain_order="left")
    part = pl.Series(rng.lognormal(0, 0.2, len(rows)) / (2 * LAYERS))
    own = pl.when(outputs & (pl.col("metric") == "kl_own_nats")).then(pl.col("d") * part)
    value = own.when(outputs & (pl.col("metric") == "kl_other_nats")).then(pl.col("d") * (1 - part)).otherwise("value")
    return joined.with_columns(value=value).drop("d")


def made(folder: Path, *, name: str, spread: bool = False, seed: int = 0, **changes: object) -> Path:
    rows = planted_rows(n_layers=LAYERS, n_prompts=PROMPTS, changed=3, permutations=3, seed=seed)
    manifest = planted_manifest(n_layers=LAYERS, n_prompts=PROMPTS, changed=3)
    manifest["pair"]["tuned"]["ref"] = name
    manifest["pair"]["base"]["files"] = {"model.safetensors": "ab" * 32}
    manifest = json.loads(json.dumps(manifest))
    for path, value in changes.items():
        section, _, key = path.partition("__")
        manifest[section][key] = value
    return write_run(folder, spread_out(rows, seed + 1) if spread else rows, manifest)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {
        "local": made(place / "local", name="local"),
        "again": made(place / "again", name="again", seed=7),
        "spread": made(place / "spread", name="spread", spread=True, seed=3),
        EVIL: made(place / "evil", name=EVIL, spread=True, seed=9),
    }


def test_a_spread_change_is_told_from_a_local_one(folders: dict[str, Path]) -> None:
    found = compare.open_runs([folders["local"], folders["spread"]])
    local, spread = (found.quantities["sites"][name].value for name in ("local", "spread"))
    assert local < 1.6
    assert spread > 0.9 * 2 * LAYERS
    (apart,) = found.contrasts["sites"]
    assert apart.told_apart
    assert apart.value == pytest.approx(local - spread)
    assert found.quantities["localisation"]["local"].value > 0.94
    assert found.quantities["localisation"]["spread"].value < 0.1
    assert any("in spread it is spread over more outputs than in local, by " in sentence for sentence in found.verdict())
    assert len(found.verdict()) <= 5


def test_two_runs_of_one_truth_are_not_told_apart(folders: dict[str, Path]) -> None:
    found = compare.open_runs([folders["local"], folders["again"]])
    assert not [one.key for contrasts in found.contrasts.values() for one in contrasts if one.told_apart]
    assert any("local and again cannot be told apart" in sentence and "would have been seen" in sentence for sentence in found.verdict())


def test_the_same_prompts_are_compared_one_by_one(folders: dict[str, Path]) -> None:
    found = compare.open_runs([folders["local"], folders["spread"]])
    assert found.seeds == [0, 0], "the planted runs have the same prompts"
    assert all(one.paired for contrasts in found.contrasts.values() for one in contrasts)


def test_the_page_and_the_table_are_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    found = api.compare(folders["local"], folders[EVIL], out=tmp_path / "compared")
    page = (tmp_path / "compared" / "compare.html").read_text(encoding="utf-8")
    assert EVIL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<figure") == 4, "effective numbers, two profiles, their difference"
    table = pl.read_parquet(tmp_path / "compared" / "compare.parquet")
    assert dict(table.schema) == compare.SCHEMA
    assert table.equals(found.table())
    first = page
    found.report()
    assert (tmp_path / "compared" / "compare.html").read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts__policy": "raw"}, "prompt policy: local has same_text, other has raw"),
        ({"prompts__position": "last_user"}, "position: local has decision, other has last_user"),
        (
            {"pair__base": {"ref": "another", "files": {"model.safetensors": "cd" * 32}}},
            "base model: local has abababababab, other has cdcdcdcdcdcd",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(folders: dict[str, Path], tmp_path: Path, changes: dict, said: str) -> None:
    other = made(tmp_path / "other", name="other", **changes)
    with pytest.raises(RunError, match=said):
        compare.open_runs([folders["local"], other])
    if "pair__base" in changes:
        assert compare.open_runs([folders["local"], other], across_bases=True).unlike[0].refused


def test_what_differs_beside_the_fine_tunes_is_marked(folders: dict[str, Path], tmp_path: Path) -> None:
    other = made(tmp_path / "other", name="other", prompts__template="base")
    assert [(one.what, one.said) for one in compare.open_runs([folders["local"], other]).unlike] == [("template", ("tuned", "base"))]


def test_wrong_folders_are_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="given 1 run, expected two or more"):
        compare.open_runs([folders["local"]])
    with pytest.raises(RunError, match="the same run twice"):
        compare.open_runs([folders["local"], folders["local"]])
    with pytest.raises(RunError):
        compare.open_runs([folders["local"], tmp_path])


def test_no_effect_is_nothing_to_compare(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = planted_rows(n_layers=LAYERS, n_prompts=PROMPTS, changed=3, permutations=3)
    real = pl.col("metric").str.starts_with("kl_") & pl.col("control").is_null()
    quiet = rows.with_columns(value=pl.when(real).then(pl.col("value") * 1e-11).otherwise("value"))
    manifest = planted_manifest(n_layers=LAYERS, n_prompts=PROMPTS, changed=3)
    manifest["pair"]["tuned"]["ref"] = "quiet"
    manifest["pair"]["base"]["files"] = {"model.safetensors": "ab" * 32}
    folder = write_run(tmp_path / "quiet", quiet, manifest)
    (said,) = compare.open_runs([folders["local"], folder]).verdict()
    assert said.startswith("There is nothing to compare: quiet has no effect to explain")


def test_a_run_without_patching_is_compared_by_what_it_has(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = planted_rows(n_layers=LAYERS, n_prompts=PROMPTS, changed=3, permutations=3).filter(pl.col("measure") == "divergence")
    manifest = planted_manifest(n_layers=LAYERS, n_prompts=PROMPTS, changed=3)
    manifest["pair"]["tuned"]["ref"] = "bare"
    manifest["pair"]["base"]["files"] = {"model.safetensors": "ab" * 32}
    found = compare.open_runs([folders["local"], write_run(tmp_path / "bare", rows, manifest)])
    assert "sites" not in found.contrasts
    assert set(found.contrasts) == {"d", "other_token"}
    assert statistics.d_metric(rows) == "kl_tuned_base_nats"
