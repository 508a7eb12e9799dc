"""The numbers of one run that others are held against: each is the planted one, or that of the run's own page by another way."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mechdiff.comparison import contrasts
from mechdiff.comparison.comparable import Loaded
from mechdiff.comparison.compared import Compared
from mechdiff.comparison.contrasts import pairs
from mechdiff.comparison.quantities import quantities
from mechdiff.comparison.quantity import Quantity
from mechdiff.measures.behaviour import compare as behaviour_compare
from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.behaviour.compare import changes
from mechdiff.measures.catalogue import BETWEEN_RUNS, NUMBERS
from mechdiff.measures.grafting import compare as grafting_compare
from mechdiff.measures.heads import compare as heads_compare
from mechdiff.measures.heads import sets as heads_sets
from mechdiff.measures.patching import compare as patching_compare
from mechdiff.measures.rank import compare as rank_compare
from mechdiff.measures.transport import compare as transport_compare
from mechdiff.measures.transport import findings as transport_findings
from mechdiff.measures.weights import findings as weights_findings
from mechdiff.report.difference import BREAKAGE, RECOVERY
from mechdiff.report.parts import Drawn, Run
from mechdiff.statistics import summary
from report import planted_behaviour, planted_heads, planted_sections
from report.conftest import CHANGED
from report.planted_compare import with_overlaps

N = 7


@pytest.fixture(scope="module")
def run(rows: pl.DataFrame, full_rows: pl.DataFrame, full_manifest: dict) -> Loaded:
    """A run of every measure, its change planted in attention's output at one layer."""
    made = [
        planted_sections.planted_transport,
        planted_sections.planted_rank,
        planted_heads.planted_heads,
        planted_behaviour.planted_behaviour,
    ]
    table = with_overlaps(pl.concat([full_rows, *(make(rows, n_layers=N, changed=CHANGED) for make in made)]))
    manifest = full_manifest | planted_heads.heads_manifest(n_layers=N, changed=CHANGED)
    manifest |= planted_behaviour.behaviour_manifest(rows, n_layers=N, changed=CHANGED)
    content = Run(rows=table, summary=summary.summarise(table, NUMBERS), manifest=manifest)
    return Loaded(name="planted", folder=Path("planted"), content=content, texts={})


@pytest.fixture(scope="module")
def found(run: Loaded) -> dict[str, Quantity]:
    return {one.name: one for one in quantities(run, BETWEEN_RUNS)}


def test_every_axis_has_its_numbers(found: dict[str, Quantity]) -> None:
    assert {one.axis for one in found.values()} == {"size", "where", "weights", "transport", "rank", "heads", "behaviour"}
    assert all(one.estimate.low <= one.estimate.value <= one.estimate.high for one in found.values())


def test_effects_are_what_is_broken_and_what_is_recovered(run: Loaded) -> None:
    sides = {direction: patching_compare.patched(run, direction, ("attn_out",)) for direction in (BREAKAGE, RECOVERY)}
    for direction, metric in ((BREAKAGE, "kl_own_nats"), (RECOVERY, "kl_other_nats")):
        side = sides[direction]
        assert side is not None
        written = run.content.rows.filter(
            pl.col("measure") == "patching", pl.col("direction") == direction, pl.col("metric") == metric, pl.col("arm") == "identity",
            pl.col("split") == "report", pl.col("site") == "attn_out", pl.col("layer") == CHANGED,
        ).sort("prompt")["value"].to_numpy()  # fmt: skip
        expected = written if direction == BREAKAGE else side.total - written
        np.testing.assert_array_equal(side.values[:, CHANGED], expected)
        assert side.names[CHANGED] == (CHANGED, "attn_out")


def test_the_strongest_map_is_that_of_the_page(run: Loaded, found: dict[str, Quantity]) -> None:
    carried = transport_findings.carried(run.content.rows, run.content.summary)
    assert carried is not None
    best, simple = found["recovered by the best map"], found["recovered by the best of shift and mean"]
    assert best.estimate.value == pytest.approx(carried.best.share, abs=0.01)
    assert simple.estimate.value == pytest.approx(carried.trivial.share, abs=0.01)
    assert best.where == f"{carried.arm} at {carried.name}"
    less = found["best map, less the best of shift and mean"].estimate.value
    assert less == pytest.approx(best.estimate.value - simple.estimate.value, abs=1e-9)


def test_ranks_are_the_planted_ones(found: dict[str, Quantity]) -> None:
    assert found["rank chosen by cross-validation, the shift apart"].estimate.value == planted_sections.RANK
    assert found["rank chosen by cross-validation, the shift counted"].estimate.value == planted_sections.UNCENTRED
    states = found[rank_compare.DIMENSIONS.name]
    assert 1 < states.estimate.value < planted_sections.UNCENTRED + 1


def test_heads_are_those_of_the_game(run: Loaded, found: dict[str, Quantity]) -> None:
    shares = planted_heads.shapley()
    inside = found["effective heads of the strongest layer"]
    assert inside.estimate.value == pytest.approx(shares.sum() ** 2 / (shares**2).sum(), rel=0.02)
    assert inside.layer == CHANGED
    singles = np.array([planted_heads.v([head]) for head in range(planted_heads.N_HEADS)])
    assert found["effective heads of the network"].estimate.value == pytest.approx(singles.sum() ** 2 / (singles**2).sum(), rel=0.02)
    order = next(iter(heads_sets.orders(run.content.manifest, BREAKAGE, CHANGED).values()))
    for k in (1, 3, 5):
        assert found[f"coverage by the top {k}"].estimate.value == pytest.approx(planted_heads.way(order[:k]), abs=1e-6)
        assert found[f"necessity of the top {k}"].estimate.value == pytest.approx(1 - planted_heads.way(order[k:]), abs=1e-6)


def test_weights_are_those_of_the_files(run: Loaded, found: dict[str, Quantity]) -> None:
    changed = weights_findings.how_many(run.content.summary)
    assert changed is not None
    assert found["tensors changed"].estimate.value == changed.changed / changed.tensors
    shares = np.array(list(planted_sections.ALONE.values()))
    assert found["effective modules, grafted alone"].estimate.value == pytest.approx(shares.sum() ** 2 / (shares**2).sum(), rel=0.1)
    assert not found["tensors changed"].estimate.contributions.size


def test_changes_in_behaviour_are_paired_differences(run: Loaded) -> None:
    made = {one.name: one.estimate for one in changes(run)}
    groups = behaviour_findings.groups(run.content.rows, run.content.manifest)
    report = next(group for group in groups if group.name == "report" and group.language is None)
    known = {(one.metric, one.style): one.difference[0] for one in behaviour_findings.compared(report.rows)}
    assert made["refusal log-probability margin, nats per token, test prompts"].value == pytest.approx(known["refusal_soft_nats", None])
    assert made["style markers per 100 words: courtesy, test prompts"].value == pytest.approx(known["style_per_100_words", "courtesy"])
    assert made["refusals, test prompts"].value == pytest.approx(known["refusal", None])
    assert any(name.endswith("multiple choice") for name in made)


def test_a_threshold_that_is_never_passed_is_said(run: Loaded) -> None:
    half = run.content.rows.filter(~((pl.col("measure") == "patching") & (pl.col("site") == "resid_post") & (pl.col("layer") >= CHANGED)))
    cut = Loaded(
        name="cut", folder=run.folder, content=Run(rows=half, summary=run.content.summary, manifest=run.content.manifest), texts={}
    )
    passed = {one.name: one for one in patching_compare.quantities(cut)}["half of D passed, KL increase"]
    assert passed.beyond
    assert passed.estimate.value == CHANGED


def test_sections_have_their_figures_and_readings(run: Loaded, found: dict[str, Quantity]) -> None:
    every = list(found.values())
    numbers = {"planted": every, "again": every}
    again = Loaded(name="again", folder=run.folder, content=run.content, texts={})
    of = Compared(
        runs=[run, again],
        found=numbers,
        held=pairs(numbers),
        marks=[],
        locating=[],
        across_bases=False,
        along=pl.DataFrame(),
        apart=pl.DataFrame(),
    )
    assert not any(pair.apart for pair in of.held), "one run beside itself differs in nothing"
    makers = (grafting_compare.axis, transport_compare.axis, rank_compare.axis, heads_compare.axis)
    reading = Path(contrasts.__file__).with_name("reading.html").read_text(encoding="utf-8")
    for make in (*makers, behaviour_compare.axis):
        section = make(of)
        (drawn,) = [part for part in section.parts if isinstance(part, Drawn)]
        assert drawn.chart(width=700, **drawn.options) is not None
        assert f"macro {drawn.reading}()" in reading
        assert not any(isinstance(part, dict) and part["kind"] == "note" for part in section.parts)
