"""Templates and weights crossed: planted changes of one alone, naive passes, a peer's published records, and when nothing is crossed."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from mechdiff.measures.catalogue import CHAPTERS, EXPERIMENTS, make_study
from mechdiff.measures.chat_template import findings, words
from mechdiff.measures.chat_template.page import chat_template
from mechdiff.measures.factorial import formula as factorial_formula
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.statistics import intervals
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import Prepared, prepare
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, study

OTHER = "{{ bos_token }}{% for message in messages %}[{{ message.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "ptit_qwen25_32b_factorial.jsonl.gz"
MEASURES: list[Any] = [{"divergence": {"over_text": False}}, "chat_template"]
CELLS = ("U_PT__L_PT", "U_PT__L_IT", "U_IT__L_PT", "U_IT__L_IT")
"""The pairings in the peer's records: upstream of the pretrained or instruction-tuned model, late stack of either."""


@pytest.fixture(scope="module")
def both() -> Iterator[Run]:
    """A pair whose template and weights both changed."""
    base = made.tiny_net()
    cut = [made.byte_tokenizer(OTHER), made.byte_tokenizer(made.CHATML)]
    with study(base, edited(base, edits.edit_attention), tokenizers=cut, measures=MEASURES) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


def of(run: Run, metric: str, arm: str | None = None) -> pl.DataFrame:
    return run.rows.filter(pl.col("measure") == "chat_template", metric=metric).filter(pl.col("arm").eq_missing(arm)).sort("prompt")


def test_all_four_pairings_are_naive_passes(both: Run) -> None:
    base = made.tiny_net()
    nets = {"b": base, "t": edited(base, edits.edit_attention)}
    templates = {"b": made.byte_tokenizer(OTHER), "t": made.byte_tokenizer(made.CHATML)}
    prompts = of(both, "kl_tuned_nats", "bb")["prompt"].to_list()
    for name in prompts[:3]:
        turn = [{"role": "user", "content": TEXTS[int(name[1:])]}]

        def law(arm: str, turn: list = turn) -> Tensor:
            ids = templates[arm[0]].apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
            with torch.no_grad():
                return nets[arm[1]](torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

        def value(metric: str, arm: str | None = None, name: str = name) -> float:
            return float(of(both, metric, arm).filter(prompt=name)["value"].item())

        laws = {arm: law(arm) for arm in factorial_formula.ARMS}
        kl = {arm: float((laws["tt"].exp() * (laws["tt"] - laws[arm])).sum()) for arm in laws}
        for arm in laws:
            assert value("kl_tuned_nats", arm) == pytest.approx(kl[arm], rel=1e-4, abs=1e-9)
        assert value("kl_template_nats", "base") == pytest.approx(float((laws["tb"].exp() * (laws["tb"] - laws["bb"])).sum()), rel=1e-4)
        assert value("kl_weights_nats", "base") == pytest.approx(float((laws["bt"].exp() * (laws["bt"] - laws["bb"])).sum()), rel=1e-4)
        assert value("template_effect_nats") == pytest.approx((kl["bb"] - kl["tb"] + kl["bt"]) / 2, rel=1e-4)
        assert value("interaction_nats") == pytest.approx(kl["tb"] + kl["bt"] - kl["bb"], rel=1e-4, abs=1e-6)


def test_the_two_parts_sum_to_d_and_the_tuned_models_side_is_d_of_the_study(both: Run) -> None:
    d = of(both, "kl_tuned_nats", "bb")["value"]
    parts = of(both, "template_effect_nats")["value"] + of(both, "weights_effect_nats")["value"]
    np.testing.assert_allclose(parts, d, rtol=1e-9)
    plain = (
        both.rows.filter(metric="kl_tuned_base_nats", split="report", measure="divergence").filter(pl.col("unit").is_null()).sort("prompt")
    )
    np.testing.assert_array_equal(of(both, "kl_weights_nats", "tuned")["value"], plain["value"])


def test_the_page_says_what_is_the_templates_and_what_the_weights(both: Run) -> None:
    found = findings.split(both.rows, "nats")
    assert found is not None
    assert sum(found.shares[name].mean for name in ("template_effect", "weights_effect")) == pytest.approx(1)
    (said, *_) = lead(both, CHAPTERS["chat_template"])
    assert said.startswith("Each with its own chat template (")
    (one,) = words.clause(both)
    assert one.tested
    parts, square, _how = chat_template(both).parts
    assert [line[0] for line in parts["rows"]] == ["the template", "the weights", "both, beyond the sum of each alone"]
    assert square["rows"][1][2].startswith("0"), "the tuned model with its own template is what all are compared with"


def test_a_run_of_random_effects_says_nothing_of_needing_each_other(both: Run) -> None:
    """The sentence on the interaction stands where its interval leaves 0 out, and nowhere else."""
    noise = np.random.default_rng(0).standard_normal(len(of(both, "interaction_linear_nats")))
    flat = both.rows.with_columns(
        value=pl.when((pl.col("measure") == "chat_template") & (pl.col("metric") == "interaction_linear_nats")).then(0.0).otherwise("value")
    )
    found = findings.split(flat)
    assert found is not None
    assert words.beyond_the_sum(found) == ""
    large = of(both, "kl_tuned_nats", "bb")["value"].mean() * (1 + 0.1 * noise)  # type: ignore[operator]
    names = dict(zip(of(both, "interaction_linear_nats")["prompt"], large.tolist(), strict=True))
    told = pl.col("prompt").replace_strict(names, default=0.0, return_dtype=pl.Float64)
    here = (pl.col("measure") == "chat_template") & (pl.col("metric") == "interaction_linear_nats")
    assert "build on each other" in words.beyond_the_sum(
        findings.split(both.rows.with_columns(value=pl.when(here).then(told).otherwise("value")))
    )


# ---- a peer's table --------------------------------------------------------------------------------------------------------------------


def margins(lines: Iterator[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Margins [prompt, run] of the pairings bb, bt, tb, tt, and the step of each prompt's first divergence, as the peer's records hold them."""
    events = [line["events"]["first_diff"] for line in lines if line["events"].get("first_diff", {}).get("valid")]
    table = [[event["cells"][cell]["common_it"]["it_vs_pt_margin"] for cell in CELLS] for event in events]
    return np.array(table), np.array([event["event"]["step"] for event in events])


def crossed(table: np.ndarray) -> dict[str, np.ndarray]:
    found = factorial_formula.effects(*(torch.from_numpy(column)[None] for column in table.T))
    return {name: values[0].numpy() for name, values in found.items()}


def test_the_statistics_of_a_square_are_those_of_a_peers_published_table() -> None:
    if not PUBLISHED.exists():
        pytest.skip("the published records are not beside this checkout")
    with gzip.open(PUBLISHED, "rt", encoding="utf-8") as lines:
        table, steps = margins(json.loads(line) for line in lines)
    found = crossed(table)
    late, both = found["downstream_effect"], found["interaction"]
    assert len(table) == 1397
    assert (late - both / 2).mean() == pytest.approx(0.97662, abs=5e-6), "the late stack from the base's upstream"
    assert (late + both / 2).mean() == pytest.approx(2.42283, abs=5e-6), "and from the tuned model's"
    assert both.mean() == pytest.approx(1.44620, abs=5e-6)
    low, high = (float(end[0]) for end in intervals.mean_intervals(both[:, None]))
    assert (low, high) == pytest.approx((1.326, 1.568), abs=0.01), "a percentile bootstrap there, a bootstrap-t here"
    assert (steps >= 3).sum() == 628
    assert both[steps >= 3].mean() == pytest.approx(1.02005, abs=5e-6)


def test_the_statistics_of_a_square_are_the_published_formula_on_made_records() -> None:
    generator = np.random.default_rng(0)
    table = generator.standard_normal((40, 4)) + np.array([0, 1, 0.5, 3])
    cells = [{cell: {"common_it": {"it_vs_pt_margin": float(value)}} for cell, value in zip(CELLS, line, strict=True)} for line in table]
    lines = [{"events": {"first_diff": {"valid": True, "cells": one, "event": {"step": 1}}}} for one in cells]
    read, _ = margins(iter([*lines, {"events": {}}]))
    found = crossed(read)
    for line, late, both in zip(table, found["downstream_effect"], found["interaction"], strict=True):
        from_base, from_tuned = line[1] - line[0], line[3] - line[2]
        assert both == pytest.approx(from_tuned - from_base)
        assert late == pytest.approx((from_base + from_tuned) / 2)


# ---- when nothing is crossed -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "tuned", "why"),
    [
        (made.CHATML, made.CHATML, "both chat templates print the same text"),
        (None, made.CHATML, "the tokenizer of base has no chat template of its own"),
        ("{{ raise_exception('no system') }}", made.CHATML, "the base model's chat template cannot be rendered: no system"),
    ],
)
def test_templates_that_cannot_be_crossed_are_left_out_in_one_line(base: str | None, tuned: str, why: str, tmp_path: Path) -> None:
    prepared = planned(tmp_path, base, tuned)
    (said,) = [one["why"] for one in prepared.plan.skipped if one["what"] == "chat_template"]
    assert said.startswith(why)
    assert "chat_template" not in {cell.stage for cell in prepared.plan.cells}
    assert set(prepared.rendered) == {"fit", "select", "report"}
    empty = Run(rows=pl.DataFrame(schema={}), summary=pl.DataFrame(), manifest={"skipped": prepared.plan.skipped})
    assert words.why_not(empty) == f"Template against weights was not measured: {said}."


@pytest.mark.parametrize(
    ("policy", "splits"),
    [
        ({}, {"template of base"}),
        ({"template": "base"}, {"template of tuned"}),
        ({"policy": "native"}, {"template of base", "template of tuned"}),
        ({"position": "last_user"}, {"template of base", "template of tuned"}),
    ],
)
def test_what_the_study_prints_already_is_not_read_twice(policy: dict, splits: set[str], tmp_path: Path) -> None:
    prepared = planned(tmp_path, OTHER, made.CHATML, **policy)
    assert set(prepared.rendered) - {"fit", "select", "report"} == splits
    (cell,) = [cell for cell in prepared.plan.cells if cell.stage == "chat_template"]
    for side, split in cell.key["templates"].items():
        one = next(iter(prepared.rendered[split].values()))
        assert one.text_base == one.text_tuned
        assert ("[Say" in one.text_base) == (side == "base")


def test_a_template_none_of_whose_prompts_can_be_read_is_not_taken_for_the_studys_own(tmp_path: Path) -> None:
    first = planned(tmp_path, OTHER, made.CHATML)
    broken = [("template of base", name, "its logits are not finite") for name in first.rendered["template of base"]]
    prepared = prepare(first.study, RunOptions(device="cpu"), EXPERIMENTS, broken=broken)
    assert "chat_template" not in {cell.stage for cell in prepared.plan.cells}
    (said,) = [one["why"] for one in prepared.plan.skipped if one["what"] == "chat_template"]
    assert said == "every prompt printed with the template of base was left out"
    empty = Run(rows=pl.DataFrame(schema={}), summary=pl.DataFrame(), manifest={"skipped": prepared.plan.skipped})
    assert words.why_not(empty) == f"Template against weights was not measured: {said}."


def planned(folder: Path, base: str | None, tuned: str, **policy: str) -> Prepared:
    net = made.tiny_net()
    made.save(net, made.byte_tokenizer(base), folder / "base")
    made.save(net, made.byte_tokenizer(tuned), folder / "tuned")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"id": f"p{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS[:9])))
    pair = {side: str(folder / side) for side in ("base", "tuned")}
    asked = {"pair": pair, "prompts": {"file": str(folder / "prompts.jsonl"), **policy}, "measures": MEASURES}
    return prepare(make_study(asked), RunOptions(device="cpu"), EXPERIMENTS)
