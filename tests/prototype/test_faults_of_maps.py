"""Faults of maps and of their ranks (docs/FAULTS.md): A1, A2, A7, A8, A13 to A18, A23."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

import mechdiff
import pico
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import Write, replay
from mechdiff.errors import PromptError, StudyError
from mechdiff.maps import anchored, maps
from mechdiff.maps.anchored import Fit, Pairs
from mechdiff.maps.maps import DEFAULT, Map, check_ranks, is_the_mean
from mechdiff.measures.catalogue import EXPERIMENTS, NUMBERS
from mechdiff.measures.rank import page as rank_page
from mechdiff.measures.rank.formula import curve_maps
from mechdiff.measures.transport import page as transport_page
from mechdiff.measures.transport.formula import Sample, quality
from mechdiff.measures.transport.plan import TransportOptions
from mechdiff.report import phrasing
from mechdiff.report.parts import Run
from mechdiff.rows import rows as make_rows
from mechdiff.statistics import summary
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
from mechdiff.validate import edits
from prototype.conftest import CLOSER
from prototype.tiny_runs import PLAIN, Finished, captions, finish, notes, save_pair, study, tables
from report import planted_sections

AT = {"layer": CLOSER, "site": "attn_out", "unit": None}
CLOSE, TRANSPORT = "tuned<-base", "base<-base"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- A1: the rank was never applied --------------------------------------------------------------------------------------------------


def test_a01_four_maps_that_are_one_map_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random(100, 50)
    pair = Sample(base=source, tuned=source + 0.1 * source @ random(50, 50, seed=1), groups=torch.arange(100))
    assert [one.rank for one in curve_maps(pair, None) if one.arm == "rrr"] == [0, 1, 2, 4, 8, 16, 32, 50]
    whole = Map("anchored_ridge", lam=0.01).fit(pair.base, pair.tuned)
    with pytest.raises(StudyError, match="rank_not_applied: asked for 1, measured 50, asked for 8, measured 50, asked for 32, measured 50"):
        check_ranks({1: whole, 8: whole, 32: whole, 50: whole})
    ignores_it = lambda pairs, rank=None, lam=None: anchored.anchored_ridge(pairs, lam)  # noqa: E731
    monkeypatch.setitem(maps.FAMILIES, "rrr", ignores_it)
    with pytest.raises(StudyError, match="rank_not_applied"):
        curve_maps(pair, None)


def test_a01_a_rank_in_the_rows_is_that_of_the_map(edited: Finished) -> None:
    curve = edited.of("rank", "kl_own_nats", **AT, direction=CLOSE, arm="rrr", control=None)
    assert sorted(set(curve["rank"])) == [0, 1, 2], "the edit has two dimensions: there is no map of more"
    by_rank = dict(curve.group_by("rank").agg(pl.col("value").mean()).iter_rows())
    assert by_rank[0] > 2 * by_rank[1] > 10 * by_rank[2]
    fitted = edited.of("transport", "kl_own_nats", **AT, direction=CLOSE, arm="rrr", strength=None, control=None)
    assert set(fitted["rank"]) == {mechdiff.load_map(edited.path / "maps" / "L1.attn_out.rrr.base_to_tuned.safetensors").rank_}


@pytest.mark.parametrize("asked", [{"rank": {"draws": "0"}}, {"rank": {"ranks": [1, 8, 32]}}, {"transport": {"rank": 8}}])
def test_a01_a_rank_cannot_be_asked_for_and_a_text_is_no_number(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"given '0', expected a whole number|unknown key"):
        study(tmp_path, asked)


def test_a01_a_cut_that_is_asked_for_is_that_of_the_map(tmp_path: Path) -> None:
    """The sweep of the original study: its shrinkage and its cut reach the map, which spans as many dimensions as were asked for and no more."""
    base = pico.pico("llama")
    save_pair(tmp_path, base.net, pico.twin(base, edits.edit_attention).net)
    asked = {"sites": ["resid_post"], "layers": [CLOSER], "closer": [CLOSER], "maps": ["procrustes", "whitened_procrustes"],
             "shrinkage": 0.05, "strengths": [0.3], "permutations": 0}  # fmt: skip
    for cut in (1, 3):
        folder = finish(study(tmp_path, PLAIN, {"transport": {**asked, "cut": cut}}), tmp_path / f"run{cut}").path / "maps"
        for arm, settings in (("procrustes", {"cut": cut}), ("whitened_procrustes", {"cut": cut, "shrinkage": 0.05})):
            one = mechdiff.load_map(folder / f"L{CLOSER}.resid_post.{arm}.base_to_tuned.safetensors")
            assert one.settings == settings
            states = random(40, len(one.affines_[0].mean_in))
            spread = one.transform(states) - one.transform(states[:1])
            assert torch.linalg.matrix_rank(spread, rtol=1e-6) == cut


def test_a01_ranks_that_do_the_same_are_said_on_the_page(rows: pl.DataFrame) -> None:
    table = pl.concat([rows.filter(pl.col("measure") == "divergence"), planted_sections.planted_rank(rows, n_layers=7, changed=4)])
    assert "rank_not_applied" not in notes(rank_page.rank(Run(rows=table, summary=summary.summarise(table, NUMBERS), manifest={})))
    at = (pl.col("measure") == "rank") & (pl.col("layer") == 4) & (pl.col("site") == "attn_out") & (pl.col("metric") == "kl_own_nats")
    at = at & (pl.col("direction") == CLOSE) & (pl.col("rank") > 0) & (pl.col("arm") == "rrr") & pl.col("strength").is_null()
    same = pl.when(at & pl.col("control").is_null() & pl.col("unit").is_null())
    table = table.with_columns(value=same.then(pl.col("prompt").str.slice(1).cast(pl.Float64, strict=False) + 1).otherwise("value"))
    said = notes(rank_page.rank(Run(rows=table, summary=summary.summarise(table, NUMBERS), manifest={})))
    assert said.startswith("rank_not_applied: at L4.attn_out the maps of all ranks above 0 do the same on every prompt")


# ---- A2: the rank-k map was the mean -------------------------------------------------------------------------------------------------


def test_a02_the_published_maps_are_told_to_be_the_mean() -> None:
    published = {1: 1.684e-5, 8: 1.072e-3, 32: 1.657e-2}
    assert all(is_the_mean(r2_train, rank, 350) for rank, r2_train in published.items())
    assert not any(is_the_mean(0.5, rank, 350) for rank in published)


@pytest.mark.parametrize("family", ["rrr", "whitened_procrustes"])
def test_a02_a_map_scaled_to_nothing_is_warned_of(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = maps.FAMILIES[family]

    def wrong_denominator(pairs: Pairs, **settings: Any) -> Fit:
        found = true(pairs, **settings)
        return replace(found, affines=tuple(replace(one, right=one.right / 1000) for one in found.affines))

    base = pico.pico("llama")
    save_pair(tmp_path, base.net, pico.twin(base, edits.edit_attention).net)
    asked = {"sites": ["attn_out"], "layers": [CLOSER], "closer": [CLOSER], "maps": [family], "strengths": [], "permutations": 0}
    monkeypatch.setitem(maps.FAMILIES, family, wrong_denominator)
    record = finish(study(tmp_path, PLAIN, {"transport": asked}), tmp_path / "run").manifest
    assert "2 maps explain no more of what they were fitted to than noise would: they are the mean, or the mean shift" in record["warnings"]
    assert record["transport"]["fits"]["attn_out"][f"{family}.there"]["L1"]["is_the_mean"] is True


def test_a02_identity_shift_and_mean_stand_beside_every_map(edited: Finished) -> None:
    close = edited.of("transport", "kl_own_nats", direction=CLOSE, strength=None, control=None)
    for _, arms in close.group_by("layer", "site").agg(pl.col("arm").unique()).select("layer", "arm").iter_rows():
        assert set(arms) == {"identity", "shift", "mean", "resample", "rrr", "whitened_procrustes"}, (
            "the study asked for the last two alone"
        )
    assert not any("they are the mean" in text for text in edited.manifest["warnings"])


# ---- A7: a map of one place was written at another ------------------------------------------------------------------------------------


def test_a07_what_is_read_at_a_site_is_written_there(edited: Finished, tmp_path: Path) -> None:
    own = edited.of("patching", "kl_own_nats", arm="oracle")
    assert set(own["site"]) == {"attn_out", "mlp_out", "resid_post"}
    assert own["value"].max() < 1e-10, "a model's own activation, written back"  # type: ignore[operator]
    model, ids = pico.pico("llama"), pico.prompts(1)[0]
    clean = capture(model, ids, [Site(1, "attn_out")], [len(ids) - 1], keep_cache=True)
    state = clean.states[Site(1, "attn_out")][None]
    right, wrong = (replay(model, [clean], [{Site(1, kind): Write(value=state)}])[0, 1] for kind in ("attn_out", "resid_post"))
    assert kl_nats(clean.logits, right) < 1e-10
    assert kl_nats(clean.logits, wrong) > 1e-3, "what the prototype did: the same activation over the block's output"
    with pytest.raises(StudyError, match="written_at: unknown key"):
        study(tmp_path, {"transport": {"sites": ["attn_out"], "written_at": "resid_post"}})


# ---- A8: strength applied twice, and the best strength is "inject nothing" -------------------------------------------------------------


def test_a08_kl_grows_as_the_square_of_the_strength_from_0_that_is_always_there(edited: Finished) -> None:
    curve = edited.of("transport", "kl_own_nats", **AT, control=None).with_columns(pl.col("strength").fill_null(1.0))
    for direction, arm in itertools.product((CLOSE, TRANSPORT), ("shift", "rrr", "whitened_procrustes")):
        here = curve.filter(pl.col("direction") == direction, pl.col("arm") == arm)
        by_strength = dict(here.group_by("strength").agg(pl.col("value").mean()).iter_rows())
        assert set(by_strength) == {0.0, 0.25, 0.5, 1.0}, "the study asked for 0.25 and 0.5 alone"
        assert by_strength[0.0] < 1e-10
        assert by_strength[0.5] / by_strength[0.25] == pytest.approx(4, rel=0.15), "16, had the strength been applied twice"


def test_a08_a_weaker_patch_is_no_drop_and_the_best_strength_is_chosen_on_select(edited: Finished) -> None:
    weak = edited.summary.filter(pl.col("measure") == "transport", pl.col("strength").is_not_null(), pl.col("direction") == CLOSE)
    assert set(weak["split"]) == {"select", "report"}
    assert weak["drop"].null_count() == len(weak) > 20
    said = captions(transport_page.transport(edited.content))["transport_strength_recovery"]
    assert "selected on the validation prompts" in said
    assert "at s = 0," not in said


# ---- A13 to A15: whitened Procrustes with few rows, R2 in whitened space, a shuffle control that was not shown ---------------------------


FROM_ITSELF = "from the source to itself its held-out R2 is"


def test_a13_whitened_procrustes_fails_on_identical_models_and_says_so(edited: Finished) -> None:
    few, held_out = random(30, 50), random(100, 50, seed=1)
    one = Map("whitened_procrustes").fit(few, few)
    assert one.identical_score_ is not None
    assert one.identical_score_ < -0.05
    assert one.warnings_ == (f"30 rows for 50 features: a map that is not anchored needs 5 each; {FROM_ITSELF} {one.identical_score_:.2f}",)
    for family in set(DEFAULT) - {"mean"}:
        torch.testing.assert_close(Map(family).fit(few, few).transform(held_out), held_out)
    assert "whitened_procrustes" not in study(edited.path, "transport").asked(TransportOptions).maps, "it runs by name only"
    assert any(text.startswith("36 rows for 32 features: a map that is not anchored") for text in edited.manifest["warnings"])


def test_a14_r2_is_of_the_raw_states() -> None:
    """The map errs by half along one feature that has nearly all of the variance: whitened, nine features of ten would be perfect."""
    spread = torch.tensor([30.0, *[1.0] * 9], dtype=torch.float64)
    target = random(400, 10) * spread
    mapped = target.clone()
    mapped[:, 0] *= 0.5
    found = quality(mapped, random(400, 10, seed=1), target, target.mean(0))
    raw = 1 - float((target - mapped).square().sum() / (target - target.mean(0)).square().sum())
    whitened = 1 - float(((target - mapped) / spread).square().sum() / ((target - target.mean(0)) / spread).square().sum())
    assert float(found["r2"]) == pytest.approx(raw)
    assert raw == pytest.approx(0.75, abs=0.01)
    assert whitened == pytest.approx(0.975, abs=0.01)


def test_a15_the_shuffle_control_stands_beside_the_map_and_counts_if_it_fails(edited: Finished, rows: pl.DataFrame) -> None:
    controls = edited.of("transport", "kl_own_nats", **AT, direction=CLOSE, control="permuted")
    assert set(controls["arm"]) == {"rrr", "whitened_procrustes"}
    assert edited.of("transport", "r2_change", **AT, arm="rrr", direction=CLOSE)["control"].str.starts_with("permuted#").sum() == 10
    beside = next(one for one in tables(transport_page.transport(edited.content)) if "shuffled pairs" in one["columns"])
    assert {row[0] for row in beside["rows"]} >= {"L1.attn_out, rrr", "L1.attn_out, whitened_procrustes"}
    mapped = planted_sections.planted_transport(rows, n_layers=7, changed=4).filter(~pl.col("metric").str.starts_with("kl_"))
    table = pl.concat([rows.filter(pl.col("measure") == "divergence"), mapped])
    refit = pl.col("control").str.starts_with("permuted#").fill_null(False) & (pl.col("metric") == "r2_change")
    for failed, sites in ((False, "14"), (True, "0")):
        shown = table.with_columns(value=pl.when(refit & failed).then(0.9).otherwise("value"))
        content = Run(rows=shown, summary=summary.summarise(shown, NUMBERS), manifest={})
        said = captions(transport_page.transport(content))["transport_fit"]
        assert f"At {sites} of 21 sites a map predicts the change better than refits on permuted pairs" in said
        assert ("At 21 of them p cannot reach 0.05" in said) == failed, (
            "all refits do the same, and best: no map could have come before them"
        )


# ---- A16: chosen on the set that is reported -----------------------------------------------------------------------------------------


def null_study(seed: int) -> pl.DataFrame:
    """One site, four maps at six strengths: none does anything but add noise to D, on either split."""
    draw, frames = np.random.default_rng(seed), []
    for split in ("select", "report"):
        place: dict[str, Any] = {"split": split, "prompt": [f"{split}{i}" for i in range(40)]}
        d = draw.gamma(4, 0.5, 40)
        frames.append(make_rows(d, measure="divergence", metric="kl_tuned_base_nats", **place))
        for arm, strength in itertools.product(DEFAULT[3:], (None, 0.25, 0.5, 0.75, 1.25, 1.5)):
            at = {"measure": "transport", "layer": 1, "site": "attn_out", "arm": arm, "strength": strength, **place}
            noise = d * np.exp(draw.normal(-0.02, 0.2, (2, 40)))
            frames.append(make_rows(noise[0], direction=TRANSPORT, metric="kl_other_nats", **at))
            frames.append(make_rows(noise[1], direction=CLOSE, metric="kl_own_nats", **at))
    return pl.concat(frames)


def test_a16_the_best_of_24_null_cells_is_nothing_on_other_prompts() -> None:
    best, said = [], []
    for seed in range(8):
        table = null_study(seed)
        content = Run(rows=table, summary=summary.summarise(table, NUMBERS), manifest={})
        cells = content.summary.filter(pl.col("split") == "report", pl.col("metric") == "kl_other_nats")
        assert len(cells) == 24
        best.append(float(cells["share"].max()))  # type: ignore[arg-type]
        caption = captions(transport_page.transport(content))["transport_strength_recovery"]
        assert "selected on the validation prompts" in caption
        shown = caption.partition("At L1.attn_out ")[2].partition(" (")[0]
        assert shown in {phrasing.share(one) for one in cells["share"]}
        said.append(float(shown.removesuffix(" %").replace("\u2212", "-")) / 100)
    assert np.mean(best) > 0.05, "chosen where it is reported, noise recovers 6 % of D"
    assert abs(np.mean(said)) < 0.025


def test_a16_prompts_that_choose_are_not_those_that_are_reported(edited: Finished) -> None:
    file = str(edited.path.parent / "prompts.jsonl")
    with pytest.raises(
        PromptError, match="stands in both select and report: what is chosen on one split would be reported on the same prompt"
    ):
        prepare(study(edited.path.parent, PLAIN, prompts={"select": file, "report": file, "policy": "raw"}), RunOptions(), EXPERIMENTS)
    ranked = next(one for one in tables(transport_page.transport(edited.content)) if "KL_raw" in one["columns"])
    assert "ranked on the prompts they are reported on, so that the first of" in ranked["title"]


# ---- A17, A18: "KL_raw" was a fitted diagonal; the patched model was scored against itself ---------------------------------------------


def test_a17_kl_raw_is_the_base_s_own_state(edited: Finished) -> None:
    key = ["layer", "site", "prompt"]
    where = {"direction": CLOSE, "site": "attn_out", "arm": "identity", "unit": None, "control": None, "strength": None}
    raw, broken = (edited.of(measure, "kl_own_nats", **where).sort(key) for measure in ("transport", "patching"))
    assert raw.select(*key, "value").equals(broken.select(*key, "value"))
    assert set(raw["rank"]) == {0}, "nothing is fitted; what scales each feature is called diag_affine"
    ranked = next(one for one in tables(transport_page.transport(edited.content)) if "KL_raw" in one["columns"])
    mean = raw.filter(pl.col("layer") == CLOSER)["value"].mean()
    assert {row[1] for row in ranked["rows"] if row[0].startswith("L1.attn_out")} == {phrasing.nats(mean)}  # type: ignore[arg-type]


def test_a18_transport_is_the_base_scored_against_the_tuned_model(edited: Finished) -> None:
    own = {**AT, "arm": "rrr", "strength": None, "control": None}
    moved, close = (
        edited.one("transport", metric, **own, direction=way) for metric, way in (("kl_other_nats", TRANSPORT), ("kl_own_nats", CLOSE))
    )
    assert moved["share"] == pytest.approx(1 - moved["mean"] / edited.one("divergence", "kl_tuned_base_nats", unit=None)["mean"])
    assert close["drop"] > 0.9 > 0.7 > moved["share"], (
        "the map finds the tuned activation, which at one position carries half of the change"
    )
    assert edited.one("transport", "kl_own_nats", **own, direction=TRANSPORT)["share"] is None, "against itself there is no share"
    assert edited.one("transport", "kl_other_nats", **own, direction=CLOSE)["share"] is None
    assert set(edited.of("transport", "kl_other_nats", direction="base<-tuned")["arm"].drop_nulls()) == {"identity"}, "no map there"
    said = captions(transport_page.transport(edited.content))["transport_recovery"]
    assert f"The best linear map there, rrr, recovers {phrasing.share(moved['share'])} [95 % CI: " in said
    assert "more than the vector (no test: too few prompts for this skew)" in said, "no p stands for a test that was not made"
    assert "Whether a linear map recovers more than the best fixed vector" in said
    assert "p = 1" not in said


# ---- A23: CKA and cosine of mapped states as evidence ---------------------------------------------------------------------------------


def test_a23_cka_and_cosine_have_what_knows_nothing_beside_them(edited: Finished) -> None:
    named = {}
    for metric in ("cka_mapped", "cosine", "cosine_of_mean"):
        found = edited.of("transport", metric, **AT, direction=CLOSE, control=None)
        named[metric] = dict(found.group_by("arm").agg(pl.col("value").mean()).iter_rows())
        assert set(named[metric]) == {"identity", "shift", "mean", "resample", "rrr", "whitened_procrustes"}
    assert named["cosine"]["mean"] == pytest.approx(named["cosine_of_mean"]["rrr"]) == pytest.approx(named["cosine_of_mean"]["resample"])
    assert named["cosine"]["mean"] > 0.4, "a cosine like those that were published, of a vector that knows no prompt"
    assert abs(named["cka_mapped"]["resample"]) < 0.4 < 0.9 < named["cka_mapped"]["rrr"]
    ranked = next(one for one in tables(transport_page.transport(edited.content)) if "KL_raw" in one["columns"])
    line = dict(zip(ranked["columns"], next(row for row in ranked["rows"] if row[0] == "L1.attn_out, rrr"), strict=True))
    for column, value, other in (("CKA (another prompt's activation)", "cka_mapped", named["cka_mapped"]["resample"]),
                                 ("cosine (of the mean)", "cosine", named["cosine"]["mean"])):  # fmt: skip
        assert line[column] == f"{phrasing.decimal(named[value]['rrr'], 3)} ({phrasing.decimal(other, 3)})"
