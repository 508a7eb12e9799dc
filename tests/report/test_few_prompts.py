"""No number that its prompts cannot carry: no interval of fewer than five, no rate of a group of one, no "1 prompts"."""

import re

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.behaviour import page as behaviour_page
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import prompts, shown, visible
from mechdiff.rows import rows
from mechdiff.statistics import summary
from report.small_runs import answered, asked, divergence


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (shown(0.64, 0.39, 0.84, 24, digits=2), "64 % [39, 84]"),
        (shown(0.64, 0.39, 0.84, 4, digits=2), "64 % (n\u00a0=\u00a04)"),
        (shown(0.64, 0.39, 0.84, 1), "0.640 (n\u00a0=\u00a01)"),
        (shown(0.64, 0.64, 0.64, 24), "0.640"),
        (shown(0.64, float("nan"), float("nan"), 24), "0.640"),
        (shown(float("nan"), 0.1, 0.2, 24), "–"),
        (shown(None), "–"),
        (shown(1.5, 1.2, 1.8, 24), "1.50 [1.20, 1.80]"),
        (shown(1.5, 1.2, 1.8, 24, line="\n"), "1.50\n[1.20, 1.80]"),
    ],
)
def test_a_cell_shows_what_its_prompts_can_carry(cell: str, text: str) -> None:
    assert cell == text


def test_one_prompt_is_no_prompts() -> None:
    assert [prompts(1), prompts(2), prompts(1, "report")] == ["1 prompt", "2 prompts", "1 test prompt"]


@pytest.fixture
def run() -> Run:
    """Twelve report prompts; one harmful request, two harmless ones, six sums; edits scored on one prompt."""
    n = 12
    half = np.arange(n) % 2 == 0
    table = [divergence(np.linspace(1, 2, n)), answered({"exact_match": half}, {"exact_match": ~half})]
    groups = {"refusal_unsafe": 1, "refusal_safe": 2, "maths": 6}
    for kind, size in groups.items():
        for side in ("base", "tuned"):
            place = {"measure": "behaviour", "unit": side, "prompt": [f"{kind}{i}" for i in range(size)]}
            table.append(rows(np.zeros(size), metric="exact_match" if kind == "maths" else "refusal", **place))
    under = {"measure": "behaviour", "split": "report", "prompt": ["r000"], "metric": "refusal", "direction": "base<-tuned"}
    table.append(rows([0.0], control="no_op", **under))
    table.append(rows([1.0], layer=3, site="resid_post", arm="identity", **under))
    both, manifest = pl.concat(table, rechunk=True), asked(n)
    manifest["behaviour"]["groups"] |= {kind: {"en": [f"{kind}{i}" for i in range(size)]} for kind, size in groups.items()}
    manifest["behaviour"]["closer_layers"] = [3]
    return Run(rows=both, summary=summary.summarise(both, NUMBERS), manifest=manifest)


def test_groups_of_a_few_prompts_fold_into_one_line(run: Run) -> None:
    parts = behaviour_page.answers(run).parts
    text = str(parts)
    assert "Asked too few for a rate (under 5 prompts): harmful requests (1) and harmless requests (2)." in text
    lines = [row for part in parts if part.get("kind") == "table" for row in part["rows"]]
    assert {line[0] for line in lines if line[0]} == {"test prompts", "sums"}
    assert "1 prompts" not in text
    assert not re.search(r"up to [5-9]\d ?%", text), "a rule of three of one or two prompts"
    assert "Under edits too few prompts were asked for a change to be told: refusals (1)." in text


def test_no_interval_of_fewer_than_five_prompts_is_in_the_tables(run: Run) -> None:
    few = run.rows.filter(pl.col("prompt").is_in([f"r{i:03d}" for i in range(4)]))
    told = behaviour_page.answers(Run(rows=few, summary=summary.summarise(few, NUMBERS), manifest=run.manifest))
    assert not [row for part in told.parts if part.get("kind") == "table" for row in part["rows"] if any("[" in cell for cell in row)]


def test_bytes_and_cut_characters_are_shown() -> None:
    assert [visible(text) for text in ("<0xD2>", "a<0x9d>", "Жы\ufffd", "\ufffd", "cut\ufffd\ufffd", "a\nb")] == [
        "⟨D2⟩", "a⟨9d⟩", "Жы…", "\ufffd", "cut…", "a↵\nb",
    ]  # fmt: skip
