"""Patches at the one position of an answer where the two models part: which prompts have rows, what they must be, and the page's table."""

from collections.abc import Iterator

import polars as pl
import pytest

from mechdiff import labels
from mechdiff.labels import CROSSED
from mechdiff.measures.patching import answers, findings
from mechdiff.report import phrasing
from mechdiff.report.difference import RECOVERY
from mechdiff.report.parts import Run
from mechdiff.rows import where
from mechdiff.validate import edits, made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, study

UNIT = labels.along_answer(labels.PARTING, 16)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    base = made.tiny_net()
    measures = ["divergence", {"patching": {"sites": ["mlp_out", "resid_post"], "arms": ["identity"], "map_prompts": 0}}]
    with study(base, edited(base, edits.edit_mlp), measures=measures, texts=[f"{one} {i}" for i, one in enumerate(TEXTS * 2)]) as found:
        yield Run(rows=found.rows, summary=found.summary, manifest=found.record)


def test_the_unit_is_of_an_answer_and_says_so() -> None:
    assert UNIT == "divergent, answer_16"
    assert pl.DataFrame({"unit": [UNIT]}).filter(labels.is_over_answer()).height == 1


@pytest.mark.parametrize("direction", CROSSED)
def test_prompts_where_the_models_part_have_rows_and_the_last_state_carries_all(run: Run, direction: str) -> None:
    rows = where(run.rows, measure="patching", direction=direction, unit=UNIT)
    place = where(run.rows, measure="divergence", metric="divergent_place").filter(pl.col("value").is_not_nan())
    assert set(rows["prompt"]) == set(place["prompt"]) != set()
    assert not rows["value"].is_nan().any()
    last = rows.filter(pl.col("layer") == rows["layer"].max(), pl.col("site") == "resid_post")
    total = where(run.rows, measure="divergence", metric="kl_tuned_base_divergent_nats").select("prompt", total="value")
    if direction == RECOVERY:
        assert last.filter(pl.col("metric") == "kl_other_divergent_nats")["value"].max() < 1e-6  # type: ignore[operator]
    else:
        own = last.filter(pl.col("metric") == "kl_own_divergent_nats").join(total, on="prompt")
        assert own["value"].to_list() == pytest.approx(own["total"].to_list(), rel=1e-4)
    below = rows.filter(pl.col("layer") == 0, pl.col("metric") == "kl_own_divergent_nats")
    assert below["value"].max() < 1e-9  # type: ignore[operator]


def test_the_table_sets_it_beside_the_same_written_everywhere(run: Run) -> None:
    table = answers.parts(run)[-1]
    alone = findings.site_shares(run.rows, run.summary, unit=UNIT, what="divergent")
    for name, way, there, everywhere in table["rows"]:
        direction = next(one for one, word in answers.WAYS.items() if word == way)
        one = alone.filter(pl.col("direction") == direction, pl.format("L{}.{}", "layer", "site") == name).row(0, named=True)
        assert there.startswith(phrasing.share(one["share"]))
        assert everywhere != "–"


def test_the_table_leaves_out_the_readout_alone_and_says_of_how_many_prompts_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block's output is what is read from; what its MLP writes is a site like any other."""
    monkeypatch.setattr(answers, "PARTING", 99)
    table = answers.parts(run)[-1]
    last = run.manifest["pair"]["base"]["n_layers"] - 1
    sites = {f"L{layer}.{kind}" for layer in range(last + 1) for kind in ("mlp_out", "resid_post")}
    assert {row[0] for row in table["rows"]} == sites - {f"L{last}.resid_post"}
    n = where(run.rows, measure="divergence", metric="divergent_place").filter(pl.col("value").is_not_nan())["prompt"].n_unique()
    assert table["title"].startswith(
        f"Share of D at the first position of the answers where the two models part, on the {n} prompts where they do "
    )
    assert f"({len(table['rows'])} largest of {2 * len(sites) - 2}: optimistic" in table["title"]
