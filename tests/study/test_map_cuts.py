"""Maps swept over cuts and strengths, and maps at several positions: held against what they must equal, by other code and by whole passes."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import pico
from mechdiff.architectures.sites import Site
from mechdiff.audit.distributions import NotRecomputed
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.verification import same, tolerance
from mechdiff.errors import StudyError
from mechdiff.labels import CROSSED, PATCHES, WITHIN
from mechdiff.maps.maps import Map, load_map
from mechdiff.measures.catalogue import AGAIN, EXPERIMENTS
from mechdiff.measures.transport import closer_findings, closer_page
from mechdiff.report import drawing
from mechdiff.report.parts import Drawn
from mechdiff.rows import COLUMNS
from mechdiff.validate import edits
from prototype.tiny_runs import PLAIN, Finished, finish, save_pair, study

BLOCK = 1
CLOSE, TRANSPORT = "tuned<-base", WITHIN[0]
ASKED = {"sites": ["resid_post"], "layers": [BLOCK], "closer": [BLOCK], "maps": ["procrustes", "whitened_procrustes"], "shrinkage": 0.05,
         "strengths": [0.3, 1.2], "permutations": 0, "cuts": ["full", 30, 8, 1], "positions": ["last_3"]}  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("swept")
    base = pico.pico("llama")
    save_pair(folder, base.net, pico.twin(base, edits.edit_attention).net)
    patches = {"sites": ["resid_post"], "layers": [BLOCK], "arms": ["identity", "shift", "mean"], "positions": ["decision", "last_3"],
               "map_prompts": 0}  # fmt: skip
    return finish(study(folder, PLAIN, {"patching": patches}, {"transport": ASKED}), folder / "run")


@pytest.fixture(scope="module")
def rerun(swept: Finished) -> Rerun:
    return Rerun(swept.path, EXPERIMENTS)


def values(of: pl.DataFrame) -> np.ndarray:
    return of.sort("arm", "layer", "strength", "prompt")["value"].to_numpy()


def test_every_cut_is_written_at_every_strength_on_the_prompts_of_the_fit_and_on_others(swept: Finished) -> None:
    for direction, split in ((CLOSE, "fit"), (CLOSE, "report"), (TRANSPORT, "fit"), (TRANSPORT, "report")):
        found = swept.of("transport", "kl_own_nats", split=split, direction=direction).filter(pl.col("unit").str.starts_with("cut"))
        places = set(found.select("arm", "unit", "strength", "control").unique().iter_rows())
        controls = (None, "itself") if split == "report" else (None,)
        assert places == {
            (arm, f"cut {cut}", strength, control)
            for arm in ASKED["maps"] for cut in (1, 8, "full") for strength in (0.3, 1.2, None) for control in controls
        }  # fmt: skip


def test_the_whole_cut_is_the_map_without_a_cut(swept: Finished) -> None:
    for strength in (0.3, 1.2, None):
        of = {"direction": CLOSE, "strength": strength, "control": None}
        whole, plain = (
            swept.of("transport", "kl_own_nats", unit=unit, **of).filter(pl.col("arm").is_in(ASKED["maps"])) for unit in ("cut full", None)
        )
        assert len(whole) == len(plain) > 0
        np.testing.assert_allclose(values(whole), values(plain), rtol=1e-5, atol=1e-9)


def naive_cut(x: np.ndarray, y: np.ndarray, k: int, shrinkage: float) -> Any:
    """Whiten, rotate, scale, colour between the first k principal components of each side, in k x k matrices of numpy."""
    (mean_x, axes_x), (mean_y, axes_y) = ((one.mean(0), np.linalg.svd(one - one.mean(0), full_matrices=False)[2][:k].T) for one in (x, y))
    a, b = (x - mean_x) @ axes_x, (y - mean_y) @ axes_y

    def root(states: np.ndarray, power: float) -> np.ndarray:
        covariance = np.cov(states.T).reshape(k, k)
        values, vectors = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / k * np.eye(k))
        return vectors * np.maximum(values, 1e-3 * (1 - shrinkage) * np.linalg.eigvalsh(covariance)[-1]) ** power @ vectors.T

    left, right = a @ root(a, -0.5), b @ root(b, -0.5)
    u, singular, vh = np.linalg.svd(left.T @ right)
    scale = singular.sum() / (left**2).sum()
    return lambda states: mean_y + (states - mean_x) @ axes_x @ root(a, -0.5) @ u @ vh @ root(b, 0.5) @ axes_y.T * scale


def test_a_swept_map_is_the_estimator_in_numpy(swept: Finished, rerun: Rerun) -> None:
    place = Site(BLOCK, "resid_post")
    states = [
        np.stack([rerun.state(side, "fit", name, place)[0].double().numpy() for name in rerun.names("fit")]) for side in ("base", "tuned")
    ]
    for k in (1, 8):
        one = load_map(swept.path / "maps" / f"{place}.whitened_procrustes.cut_{k}.base_to_tuned.safetensors")
        expected = naive_cut(*states, k, 0.05)(states[0])
        np.testing.assert_allclose(one.transform(torch.from_numpy(states[0])).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_whole_passes_give_the_rows_of_the_sweep_of_strengths_and_of_several_positions(swept: Finished, rerun: Rerun) -> None:
    """A prompt of each kind of row, by maps that are loaded from the run's folder."""
    kind = ["direction", "split", "arm", "unit", "control", "strength"]
    rows = swept.rows.filter(pl.col("measure") == "transport", pl.col("metric").is_in(["kl_own_nats", "kl_other_nats"]))
    recomputed = []
    for row in rows.filter(pl.col("layer").is_not_null()).group_by([*kind, "metric"], maintain_order=True).head(1).iter_rows(named=True):
        try:
            again = AGAIN["transport"](rerun, {name: row[name] for name in COLUMNS})
        except NotRecomputed:
            assert row["control"] is not None
            continue
        assert same(row["value"], again, tolerance(row, again, rerun.floor, 1)), row
        recomputed.append(row)
    found = pl.DataFrame(recomputed, infer_schema_length=None)
    assert {"cut 1", "cut 8", "cut full", "last_3", None} == set(found["unit"])
    assert {*WITHIN, *CROSSED} == set(found.filter(pl.col("unit") == "last_3")["direction"])
    assert {*PATCHES, *ASKED["maps"]} == set(found.filter(pl.col("unit") == "last_3")["arm"])
    assert {0.0, 0.3, 1.2, None} == set(found.filter(pl.col("unit").is_null())["strength"])


@pytest.mark.parametrize("arm", ["identity", "shift", "mean"])
def test_what_learns_nothing_at_several_positions_is_what_patching_writes_there(arm: str, swept: Finished) -> None:
    of = {"direction": CLOSE, "unit": "last_3", "control": None, "arm": arm, "layer": BLOCK, "site": "resid_post"}
    ours, other = (swept.of(measure, "kl_own_nats", **of) for measure in ("transport", "patching"))
    assert len(ours) == len(other) > 0
    np.testing.assert_allclose(values(ours), values(other), rtol=1e-5)
    alone = swept.of("transport", "kl_own_nats", **{**of, "unit": None, "strength": None})
    assert (values(ours) != values(alone)).all()


def test_a_map_at_several_positions_is_fitted_on_these_positions(swept: Finished, rerun: Rerun) -> None:
    place = Site(BLOCK, "resid_post")
    names = rerun.names("fit")
    base, tuned = (torch.cat([rerun.state(side, "fit", name, place, 3) for name in names]) for side in ("base", "tuned"))
    expected = Map("procrustes").fit(base, tuned)
    found = load_map(swept.path / "maps" / f"{place}.procrustes.last_3.base_to_tuned.safetensors")
    assert found.n_ == 3 * len(names)
    torch.testing.assert_close(found.transform(base), expected.transform(base), rtol=1e-4, atol=1e-4)
    alone = load_map(swept.path / "maps" / f"{place}.procrustes.base_to_tuned.safetensors")
    assert not torch.allclose(found.transform(base), alone.transform(base), rtol=1e-2, atol=1e-2)


def test_a_cut_above_what_the_fit_spans_is_skipped_with_its_reason(swept: Finished, tmp_path: Path) -> None:
    """30 of so few prompts in the plan; and in the run, where an MLP writes three features alone."""
    skipped = {one["what"]: one["why"] for one in swept.manifest["skipped"]}
    n_fit = len(set(swept.rows.filter(pl.col("split") == "fit")["prompt"].drop_nulls()))
    assert f"spans {n_fit - 1} principal components at most" in skipped["transport cut at 30, resid_post"]

    def narrow(net: nn.Module) -> None:
        net.transformer.h[BLOCK].mlp.c_proj.weight[:, 3:] = 0

    base = pico.twin(pico.pico("gpt2"), narrow)
    save_pair(
        tmp_path, base.net, pico.twin(base, lambda net: net.transformer.h[BLOCK].mlp.c_proj.bias.add_(edits.noise((32,)))).net, n_prompts=16
    )
    asked = {**ASKED, "sites": ["mlp_out"], "cuts": [1, 8], "positions": [], "maps": ["procrustes"], "strengths": [0.5]}
    found = finish(study(tmp_path, PLAIN, {"transport": asked}), tmp_path / "run")
    assert {"cut 1"} == set(found.of("transport", "kl_own_nats").filter(pl.col("unit").is_not_null())["unit"])
    assert found.manifest["transport"]["spanned"] == {f"L{BLOCK}.mlp_out": 3}
    assert any("has no cut at 8: what the maps are fitted on spans 3" in text for text in found.manifest["warnings"])


def test_ratios_are_given_above_three_noise_floors_alone(swept: Finished) -> None:
    raw = (pl.col("measure") == "transport") & (pl.col("direction") == CLOSE) & (pl.col("arm") == "identity") & pl.col("unit").is_null()
    raw &= (pl.col("metric") == "kl_own_nats") & pl.col("control").is_null()
    no_op = (pl.col("control") == "no_op") & (pl.col("metric") == "kl_own_nats")
    small = pl.when(raw).then(2e-6).when(no_op).then(1e-6).otherwise("value")
    found = closer_findings.sweep(swept.rows.with_columns(value=small), swept.summary)
    assert found["drop"].is_null().all()
    assert found["low"].is_null().all()
    assert found["fit_drop"].is_null().all()
    assert found["moved"].is_not_null().all()
    no_effect = pl.when(pl.col("measure") == "divergence").then(pl.lit("no_effect")).otherwise("flag")
    nothing = swept.summary.with_columns(flag=no_effect)
    found = closer_findings.sweep(swept.rows, nothing)
    assert found["moved"].is_null().all()
    assert found["moved_itself"].is_null().all()
    assert found["drop"].is_not_null().all()
    at = closer_findings.at_positions(swept.rows, nothing)
    assert len(at) > 0
    assert all(at[name].is_null().all() for name in ("moved", "low", "high", "here_moved"))


def test_of_a_constant_change_the_sweep_shows_what_a_cut_does_where_nothing_differs(tmp_path: Path) -> None:
    """Planted: the tuned model's MLP adds one vector. Every cut loses as much of its own activations as the map from the base does."""

    def push(net: nn.Module) -> None:
        net.transformer.h[BLOCK].mlp.c_proj.bias.add_(edits.noise((32,)))

    base = pico.pico("gpt2")
    save_pair(tmp_path, base.net, pico.twin(base, push).net)
    asked = {**ASKED, "sites": ["mlp_out"], "cuts": [1, 8], "positions": [], "maps": ["whitened_procrustes"]}
    found = finish(study(tmp_path, PLAIN, {"transport": asked}), tmp_path / "run")
    table = closer_findings.sweep(found.rows, found.summary)
    assert len(table) == 2 * 3
    np.testing.assert_allclose(table["kl"], table["itself"], rtol=1e-3, atol=1e-8)
    assert (table["kl"] > 1e-5).all(), "a cut costs something"
    by = {(r["cut"], r["s"]): r for r in table.iter_rows(named=True)}
    assert by["1", 1.0]["kl"] > by["8", 1.0]["kl"]
    assert "0 come out farther from the tuned model than its own cut activations do, and 0 closer" in said(
        closer_page.parts(found.content)[1]
    )


def said(part: Any) -> str:
    assert isinstance(part, Drawn)
    return part.caption


def test_the_page_has_heat_maps_curves_and_all_writes(swept: Finished) -> None:
    heat, curves, writes, positions = closer_page.parts(swept.content)
    for part in (heat, curves):
        for width in (700, 350):
            assert part.chart(swept.rows, swept.summary, swept.manifest, width=width) is not None
    tables = drawing.for_browsers(heat.chart(swept.rows, swept.summary, {}))["tables"]
    assert {k for table in tables for k in table.get("k", [])} == {"1", "8", "full"}
    assert "Drawn: 1 of 2 maps; the table has all." in heat.caption
    assert "Drawn: 1 of 2 maps; the table has all." in curves.caption
    table = closer_findings.sweep(swept.rows, swept.summary)
    assert len(writes["rows"]) == len(table) == 2 * 3 * 3
    one = table.filter(pl.col("cut") == "8", pl.col("s") == 0.3, pl.col("arm") == "procrustes").row(0, named=True)
    of = {"direction": CLOSE, "arm": "procrustes", "strength": 0.3, "unit": "cut 8"}
    kl, itself = (swept.of("transport", "kl_own_nats", **of, control=control).sort("prompt")["value"] for control in (None, "itself"))
    raw = swept.of("transport", "kl_own_nats", direction=CLOSE, arm="identity", strength=None, unit=None, control=None)["value"]
    assert one["drop"] == pytest.approx(1 - kl.mean() / raw.mean())
    assert one["apart"] == pytest.approx(kl.mean() - itself.mean())
    total = swept.of("divergence", "kl_tuned_base_nats", control=None, unit=None)["value"].mean()
    moved = swept.of("transport", "kl_other_nats", **{**of, "direction": TRANSPORT}, control=None)["value"].mean()
    assert one["moved"] == pytest.approx(1 - moved / total)
    fit = swept.of("transport", "kl_own_nats", **of, control=None, split="fit")["value"].mean()
    fit_raw = swept.of("transport", "kl_own_nats", direction=CLOSE, arm="identity", split="fit", unit=None, control=None)["value"].mean()
    assert one["fit_drop"] == pytest.approx(1 - fit / fit_raw)
    assert {line[1] for line in positions["rows"]} == {"last 3"}


def test_what_is_drawn_and_the_whole_sweep_are_counted_apart(swept: Finished) -> None:
    apart = pl.col("arm") == "procrustes"
    found = closer_findings.sweep(swept.rows, swept.summary).with_columns(p=pl.when(apart).then(0.01).otherwise(0.5), apart=pl.lit(1.0))
    text = closer_page._beyond(found, found.filter(~apart))
    assert "Of 9 writes drawn 0 come out farther" in text
    assert "and 0 closer, of all 18 of the sweep 9 and 0 (p ≤ 0.05" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cuts": [0]}, "given 0, expected numbers of principal components from 1, and full"),
        ({"cuts": ["whole"]}, "given 'whole', expected numbers"),
        ({"cuts": [1], "maps": ["rrr"]}, "cuts only with procrustes or whitened_procrustes among the maps"),
        ({"positions": ["all"]}, "given 'all', expected last_2"),
    ],
)
def test_what_cannot_be_swept_is_refused_by_name(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=said):
        study(tmp_path, {"transport": {"maps": ["procrustes"], **given}})
