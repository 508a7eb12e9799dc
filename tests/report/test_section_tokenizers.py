"""The section on what both models read."""

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.divergence import tokenizers as divergence_tokenizers
from mechdiff.report.parts import Run
from mechdiff.rows import rows as rows_of
from mechdiff.statistics import summary as statistics_summary
from report.planted_sections import d_of

SAID = "the tuned model has the base's 259 tokens and 4 more"


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, manifest: dict) -> Run:
    prompts, _ = d_of(rows, "report")
    n = np.arange(len(prompts))
    here = {"measure": "divergence", "split": "report", "prompt": prompts}
    values = {
        "tokens_per_word_base": 4.0 + n / 100,
        "tokens_per_word_tuned": np.where(n == 5, 1.0, 4.0 + n / 100),
        "mass_outside": 0.2 + n / 1000,
    }
    more = [rows_of(value, metric=metric, **here) for metric, value in values.items()]
    words = {"measure": "similarity", "metric": "cka", "unit": "words", "site": "resid_post", "split": "report"}
    more += [rows_of([0.25], layer=layer, **words) for layer in (0, 1)]
    both = pl.concat([rows, *more])
    told = {"tokenizers": {"relation": "extended", "said": SAID, "same_cut": len(n) - 1}}
    return Run(rows=both, summary=statistics_summary.summarise(both, NUMBERS), manifest={**manifest, **told})


def test_everything_that_makes_the_input_unequal_is_said(run: Run) -> None:
    parts = divergence_tokenizers.tokenizers(run).parts
    notes = " ".join(part["text"] for part in parts if part["kind"] == "note")
    assert f"{SAID}. Both cut 23 of 24 test prompts into the same tokens." in notes
    assert "both models read one rendered text (template: tuned)" in notes
    tables = {part["title"] or part["folded"]: part["rows"] for part in parts if part["kind"] == "table"}
    cut = {row[1]: row[2:] for row in tables["How each model reads the prompts"]}
    assert cut["tokens per word"][0].startswith("4.12\n[")
    assert cut["next-token mass on tokens that the other lacks"][0] == "0"
    assert cut["next-token mass on tokens that the other lacks"][1].startswith("0.212\n[")
    (apart,) = tables["The prompts that are cut most differently, in tokens per word"]
    assert apart == [d_of(run.rows, "report")[0][5], "4.05", "1.00", "0.25"]
    (words,) = (rows for title, rows in tables.items() if title.startswith("CKA of activations averaged"))
    assert [row[0] for row in words] == ["L0.resid_post", "L1.resid_post"]


def test_a_pair_of_one_tokenizer_has_little_to_say(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> None:
    parts = divergence_tokenizers.tokenizers(Run(rows=rows, summary=summary, manifest=manifest)).parts
    assert [part["kind"] for part in parts] == ["note"]
