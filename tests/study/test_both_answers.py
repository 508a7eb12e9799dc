"""Both models' answers in one run: what is said over either is what a run over it alone says, and the page says where the two disagree."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import every_measure
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.catalogue import AGAIN, CHAPTERS, EXPERIMENTS, make_study
from mechdiff.measures.divergence import both_answers, over_answers
from mechdiff.report import parts
from mechdiff.report.parts import Run
from mechdiff.report.sections import all_sections
from mechdiff.report.verdict import candidates
from mechdiff.rows import rows
from mechdiff.shares import answers_of, as_of_base, is_over_answer, over_base
from mechdiff.shares import both_answers as reads_both
from mechdiff.store.run_folder import cell_hash
from mechdiff.store.tables import read_rows, read_summary
from runs import opened, run

NO_HEADS = {"hot": 1, "select_prompts": 2, "draws": 0, "picks": 1, "top": 2, "null_edits": 0, "network_draws": 0, "attention_prompts": 0}
MEASURES: list[Any] = [
    {"divergence": {"over_text": False}},
    {"grafting": {"candidates": 2, "picks": 1, "select_prompts": 2, "truncate": False}},
    {"patching": {"sites": ["attn_out", "resid_post"], "layers": [1, 2], "arms": ["identity"], "map_prompts": 0}},
    {"factorial": {"positions": ["decision"], "layers": [1]}},
    {
        "transport": {
            "sites": ["resid_post"],
            "layers": [1],
            "closer": [1],
            "maps": ["anchored_ridge"],
            "strengths": [],
            "permutations": 2,
        }
    },
    {
        "steering": {
            "sites": ["resid_post"],
            "layers": [1],
            "closer": [1],
            "strengths": [0.5],
            "draws": 1,
            "side_prompts": 0,
            "texts": 0,
        }
    },
    {"heads": {**NO_HEADS, "layers": [1]}},
    {"attribution": {"layers": [1], "validated": 2, "select_prompts": 2, "steps": 1}},
]
KEY = ["measure", "direction", "split", "layer", "site", "unit", "arm", "rank", "strength", "control", "prompt", "metric"]


def study(folder: Path, of: str) -> Any:
    prompts = {split: str(folder / f"{split}.jsonl") for split in every_measure.SPLITS}
    pair = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
    return make_study({"pair": pair, "prompts": prompts, "measures": MEASURES, "answers": {"tokens": 4, "prompts": 4, "of": of}})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    every_measure.made(folder)
    return folder


@pytest.fixture(scope="module")
def runs(pair: Path) -> dict[str, Path]:
    for of in ("tuned", "base", "both"):
        run(study(pair, of), out=pair / f"run_{of}", page=False)
    return {of: pair / f"run_{of}" for of in ("tuned", "base", "both")}


def planned(pair: Path, of: str) -> list[Any]:
    with opened(study(pair, of), pair / f"unrun_{of}", device="cpu") as (prepared, _):
        return list(prepared.plan.cells)


def test_a_study_of_both_has_the_cells_of_each_and_grafts_answered_prompts_alone(pair: Path) -> None:
    tuned, base, both = (planned(pair, of) for of in ("tuned", "base", "both"))
    mine, theirs, ours = ({cell_hash(cell.key): cell for cell in one} for one in (tuned, base, both))
    assert list(mine) == [name for name in ours if name in mine], "of the tuned model's answers every cell is there, in its order"
    missing = [theirs[name] for name in theirs.keys() - ours.keys()]
    assert {cell.stage for cell in missing} == {"grafting"}
    added = [ours[name] for name in ours.keys() - mine.keys()]
    assert {cell.key["answer"]["of"] for cell in added} == {"base"}
    graft = [cell for cell in added if cell.stage == "grafting"]
    assert len(graft) == len(missing)
    assert {len(cell.items) for cell in graft} == {4}
    assert sum(cell.flops for cell in graft) < sum(cell.flops for cell in missing)


@pytest.mark.ci
def test_rows_and_summary_over_either_are_those_of_a_run_over_it_alone(runs: dict[str, Path]) -> None:
    for read in (read_rows, read_summary):
        both = read(runs["both"])
        over_tuned, over_the_base = (answers_of(both, side) for side in ("tuned", "base"))
        assert over_tuned.sort(pl.all()).equals(read(runs["tuned"]).sort(pl.all()))
        key = [name for name in KEY if name in both.columns]
        mine, alone = (one.filter(is_over_answer()).sort(key) for one in (over_the_base, read(runs["base"])))
        assert mine.select(key).equals(alone.select(key))
        assert set(mine["measure"]) == {next(iter(one)) if isinstance(one, dict) else one for one in MEASURES}
        grafts = pl.col("measure") == "grafting"
        assert mine.filter(~grafts).equals(alone.filter(~grafts))
        for name in ("value",) if "value" in both.columns else ("mean", "ci_low", "share"):
            np.testing.assert_allclose(mine.filter(grafts)[name].to_numpy(), alone.filter(grafts)[name].to_numpy(), rtol=1e-4, atol=1e-6)
        assert len(both) == len(over_tuned) + len(mine)


@pytest.mark.ci
def test_the_page_says_whose_answers_and_where_they_disagree(runs: dict[str, Path]) -> None:
    content = parts.load(runs["both"])
    assert content.over_base is not None
    sections = {one.id: one for one in all_sections(content, CHAPTERS)}
    said = " ".join(sections["divergence"].lead)
    assert "Along the tuned model's answers (4 prompts) D is " in said
    assert "Along the base's answers (4 prompts) D is " in said
    for section in sections.values():
        titles = [part["title"] for part in section.parts if isinstance(part, dict) and part.get("title")]
        drawn = [part.caption for part in section.parts if isinstance(part, parts.Drawn)]
        assert not {one for one in section.lead + titles + drawn if (section.lead + titles + drawn).count(one) > 1}, section.id
    grafted, patched = (" ".join(sections[name].lead) for name in ("grafting", "patching"))
    assert "Over whole answers" not in grafted
    for of in ("the tuned model's answers", "the base's answers"):
        assert f"Over {of} (4 prompts) the weights of " in grafted
        assert f"carries another share of D over {of} than at their first token cannot be tested" in patched
    for name in ("patching", "heads", "steering", "transport", "grafting"):
        titles = [part.get("title") for part in sections[name].parts if isinstance(part, dict)]
        assert both_answers.TITLE in titles, name
        assert "over the base's answers cannot be tested on so few prompts" in " ".join(sections[name].lead)
    assert " of the way in logits (the largest of 4 heads in two directions" in " ".join(sections["heads"].lead)
    assert any(part.name == "causal_map_answer_of_base" for part in sections["patching"].parts if isinstance(part, parts.Drawn))
    assert "tokens of the base's answers" in " ".join(sections["attribution"].lead + [str(one) for one in sections["attribution"].parts])
    third = " ".join(one.text for one in candidates(content, CHAPTERS)[2])
    assert "over 4 tokens of the tuned model's answers (D " in third
    assert "; over the base's (D " in third
    alone = parts.load(runs["base"])
    assert alone.over_base is None
    assert "Along the base's answers (4 prompts) D is " in " ".join(
        next(one.lead for one in all_sections(alone, CHAPTERS) if one.id == "divergence")
    )


@pytest.mark.ci
@pytest.mark.parametrize("measure", ["divergence", "grafting", "patching", "factorial", "heads", "steering", "attribution"])
def test_rows_over_the_base_s_answers_are_those_of_whole_passes(runs: dict[str, Path], measure: str) -> None:
    rerun, again = Rerun(runs["both"], EXPERIMENTS, "cpu"), AGAIN[measure]
    every = read_rows(runs["both"]).filter(pl.col("measure") == measure, pl.col("metric").str.contains("_of_base"))
    some = every.filter(~pl.col("control").fill_null("").str.contains("random"))
    for row in some.sample(min(16, len(some)), seed=1, shuffle=True).iter_rows(named=True):
        with rerun.answers_of("base"):
            found = again(rerun, row | {"metric": over_base(row["metric"])})
        assert found == pytest.approx(row["value"], rel=2e-3, abs=2e-5, nan_ok=True), row


def made(parts_of_way: dict[str, float], seed: int) -> pl.DataFrame:
    """Rows of overlaps of made sites and their totals, on sixteen prompts."""
    random = np.random.default_rng(seed)
    total = 2 + random.random(16)
    names = [f"p{i}" for i in range(16)]
    frames = [rows(total, measure="divergence", split="report", prompt=names, metric="fisher_total_answer_nats")]
    frames.append(rows(total, measure="divergence", split="report", prompt=names, metric="kl_tuned_base_answer_nats"))
    for i, (_, way) in enumerate(parts_of_way.items()):
        value = total * (way + 0.01 * random.standard_normal(16))
        columns = {"measure": "patching", "direction": "base<-tuned", "split": "report", "layer": i, "site": "mlp_out", "unit": "answer_4"}
        frames.append(rows(value, prompt=names, metric="fisher_overlap_answer_nats", arm="identity", **columns))
    return pl.concat(frames)


DIFFERS = pl.DataFrame(
    {"measure": ["divergence"], "metric": ["kl_tuned_base_answer_nats"], "flag": [None], "control": [None], "unit": [None]},
    schema_overrides={"flag": pl.String, "control": pl.String, "unit": pl.String},
)


def effects(table: pl.DataFrame, direction: str, metric: str, what: str | None) -> pl.DataFrame:
    found = table.filter(pl.col("measure") == "patching", pl.col("direction") == direction, pl.col("metric") == metric)
    return found.with_columns(name=pl.format("L{}.mlp_out", "layer"))


def test_the_site_that_matters_over_one_model_s_answers_alone_is_named() -> None:
    """L1 goes half of the way over the tuned model's answers and a tenth over the base's; L0 the same over both."""
    either = [made({"L0": 0.3, "L1": 0.5}, 1), made({"L0": 0.3, "L1": 0.1}, 2)]
    base = Run(rows=either[1], summary=DIFFERS, manifest={})
    ours = Run(rows=either[0], summary=DIFFERS, manifest={}, over_base=base)
    ways = {"base<-tuned": "tuned into base"}
    table = both_answers.compared(ours, effects, ways)["tuned into base"]
    for column, of in (("first", either[0]), ("answer", either[1])):
        total = of.filter(metric="fisher_total_answer_nats")["value"].mean()
        means = of.filter(metric="fisher_overlap_answer_nats").group_by("layer").agg(pl.col("value").mean()).sort("layer")["value"]
        np.testing.assert_allclose(table[column], means / total, rtol=1e-12)
    (sentence,) = both_answers.disagreement(ours, effects, "output", ways)
    assert "L1.mlp_out (tuned into base: 50 % over the tuned model's, 10 % over the base's; difference −39.7 % [95 % CI: " in sentence
    assert "the largest of 2 differences on these prompts, so optimistically biased" in sentence
    assert "L0" not in sentence
    (brief,) = both_answers.clause(ours, effects, ways)
    at = (
        "L1.mlp_out (tuned into base: 50 % of the way in logits over the tuned model's, 10 % over the base's; difference −39.7 % [95 % CI: "
    )
    assert brief.text.startswith(f"whose answers are read matters at {at}")
    assert brief.text.endswith("), the largest of 2 differences on these prompts, so optimistically biased")
    assert (brief.n, brief.tested) == (16, True)
    row = table.filter(name="L1.mlp_out").row(0, named=True)
    way = [(one.filter(layer=1, metric="fisher_overlap_answer_nats"), one.filter(metric="fisher_total_answer_nats")) for one in either]
    theirs, mine = (effect["value"].to_numpy() / total["value"].mean() for effect, total in reversed(way))
    assert row["apart"] == pytest.approx((theirs - mine).mean())
    assert row["apart_low"] < row["apart"] < row["apart_high"] < -0.35
    same = Run(rows=either[0], summary=DIFFERS, manifest={}, over_base=Run(rows=either[0], summary=DIFFERS, manifest={}))
    (sentence,) = both_answers.disagreement(same, effects, "output", ways)
    assert sentence.startswith("No single output was shown to go a part of the way in logits over the base's answers that is 0.05 or more")
    assert both_answers.compared(base, effects, ways) == {}
    assert both_answers.clause(same, effects, ways) == both_answers.clause(base, effects, ways) == []


def test_both_directions_are_one_family_of_tests() -> None:
    """A sentence that speaks of two directions errs in one of twenty studies, not in one of ten: p is twice that of either direction alone."""
    back = pl.col("direction").replace("base<-tuned", "tuned<-base")
    either = [
        pl.concat([one, one.filter(pl.col("measure") == "patching").with_columns(back)])
        for one in (made({"L0": 0.31}, 1), made({"L0": 0.3}, 2))
    ]
    ours = Run(rows=either[0], summary=DIFFERS, manifest={}, over_base=Run(rows=either[1], summary=DIFFERS, manifest={}))
    ways = {"base<-tuned": "tuned into base", "tuned<-base": "base into tuned"}
    both = both_answers.compared(ours, effects, ways)
    for direction, word in ways.items():
        (alone,) = both_answers.compared(ours, effects, {direction: word}).values()
        assert 0.001 < alone["p"][0] < 0.5
        assert both[word]["p"][0] == pytest.approx(2 * alone["p"][0])
    capped = over_answers.across({"one": alone.with_columns(p=0.7), "other": alone.with_columns(p=0.01), "none": alone.clear()})
    assert [one["p"].to_list() for one in capped.values()] == [[1.0], [0.02], []]


def test_names_over_the_base_s_answers_come_and_go_by_one_rule() -> None:
    names = ["kl_own_answer_nats", "kl_other_divergent_nats", "effect_answer_logits", "top1_same_answer", "divergent_place"]
    table = pl.DataFrame({"metric": [*names, "logit_diff_divergent", "kl_own_nats"]})
    named = as_of_base(table)["metric"].to_list()
    assert named == [
        "kl_own_answer_of_base_nats",
        "kl_other_divergent_of_base_nats",
        "effect_answer_of_base_logits",
        "top1_same_answer_of_base",
        "divergent_place_of_base",
    ]
    assert [over_base(one) for one in named] == names
    assert over_base("kl_own_answer_nats") is None
    both = pl.concat([table, pl.DataFrame({"metric": named})])
    assert reads_both(both)
    assert not reads_both(table)
    assert answers_of(both, "tuned")["metric"].to_list() == table["metric"].to_list()
    assert answers_of(both, "base")["metric"].to_list() == ["logit_diff_divergent", "kl_own_nats", *names]
