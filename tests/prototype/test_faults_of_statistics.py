"""Faults of statistics (docs/FAULTS.md): A20, A22, A28; and the table of all faults against these tests."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import pico
from mechdiff.architectures.sites import Site
from mechdiff.engine.distributions import kl_nats
from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.similarity.formula import measure
from mechdiff.measures.similarity.geometry import pairings
from mechdiff.statistics import summary as statistics_summary
from mechdiff.validate import edits
from prototype.tiny_runs import PLAIN, Finished, finish, save_pair, study

# ---- A20: KL in bfloat16 --------------------------------------------------------------------------------------------------------------


def test_a20_in_bfloat16_what_is_under_the_floor_is_flagged(tmp_path: Path) -> None:
    """Nothing changes below block 1: what is measured there is rounding, and is said to be."""
    base = pico.pico("llama")
    save_pair(tmp_path, base.net, pico.twin(base, edits.edit_attention).net, n_prompts=30)
    asked = {"sites": ["resid_post", "attn_out"], "arms": ["identity"]}
    found = finish(study(tmp_path, PLAIN, {"patching": asked}, dtype="bfloat16"), tmp_path / "run")
    assert found.manifest["noise_floor"]["tuned<-base"] > 1e-7
    cells = found.summary.filter(
        pl.col("measure") == "patching", pl.col("metric") == "kl_own_nats", pl.col("split") == "report", pl.col("control").is_null()
    )
    assert cells["floor"].null_count() == 0, "a floor stands beside every value"
    quiet = cells.filter(pl.col("mean") <= 3 * pl.col("floor"))
    assert {(0, "attn_out"), (0, "resid_post")} <= set(quiet.select("layer", "site").iter_rows())
    assert quiet["flag"].str.contains("below_floor").all()
    loud = cells.filter(pl.col("layer") == 1, pl.col("site") == "attn_out", pl.col("direction") == "tuned<-base")
    assert not loud["flag"].fill_null("").str.contains("below_floor").any()


def test_a20_laws_of_half_precision_logits_are_of_float32() -> None:
    logits = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    near = logits[1] + 0.01 * torch.randn(5000, generator=torch.Generator().manual_seed(1))
    exact = [(one.double().log_softmax(-1)) for one in (logits[1], near)]
    kl = float((exact[0].exp() * (exact[0] - exact[1])).sum())
    assert float(kl_nats(logits[1], near)) == pytest.approx(kl, rel=1e-4)
    halved = [one.bfloat16().log_softmax(-1) for one in (logits[1], near)]
    assert abs(float((halved[0].exp() * (halved[0] - halved[1])).sum()) - kl) > 0.1 * kl, "what the prototype had"


# ---- A22: biased CKA of few prompts, and a subsample called a bootstrap ---------------------------------------------------------------


@pytest.fixture(scope="module")
def unrelated() -> pl.DataFrame:
    """Rows of similarity of two sets of independent states: 40 prompts, 4,096 dimensions."""
    site = Site(0, "resid_post")
    x, y = ({site: torch.randn(40, 4096, generator=torch.Generator().manual_seed(seed))} for seed in (0, 1))
    return measure(x, y, [f"p{i}" for i in range(40)], "report", orders=pairings(range(40), 99, 0))


def test_a22_independent_states_are_not_similar(unrelated: pl.DataFrame) -> None:
    summary = statistics_summary.summarise(unrelated, NUMBERS)
    found = {one["metric"]: one for one in summary.iter_rows(named=True)}
    assert found["cka_biased"]["mean"] == pytest.approx(0.99, abs=0.002), "what was published"
    assert abs(found["cka"]["mean"]) < 0.05
    assert found["cka"]["p"] > 0.05
    inflated = found["participation_ratio_base"]["mean"] / (found["participation_ratio_base"]["mean"] + 40)
    assert found["participation_ratio_tuned"]["mean"] > 35, "beside it: nearly as many dimensions as prompts"
    assert inflated < 0.6


def test_a22_the_interval_is_a_jackknife_and_no_bootstrap_of_rows_can_be_had(unrelated: pl.DataFrame, tmp_path: Path) -> None:
    found = statistics_summary.summarise(unrelated, NUMBERS).filter(pl.col("metric") == "cka").row(0, named=True)
    without = unrelated.filter(pl.col("metric") == "cka_without_prompt")["value"].to_numpy()
    error = float(np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum()))
    assert found["ci_low"] < found["mean"] < found["ci_high"]
    low, middle, high = np.arctanh([found["ci_low"], found["mean"], found["ci_high"]])
    assert high - middle == pytest.approx(middle - low), "symmetric on the scale of Fisher's z"
    assert (found["ci_high"] - found["mean"]) / error == pytest.approx(2.0, abs=0.1)
    alone = statistics_summary.summarise(unrelated.filter(pl.col("metric") != "cka_without_prompt"), NUMBERS)
    assert alone.filter(pl.col("metric") == "cka")["ci_low"].to_list() == [None]
    for asked in ({"similarity": {"bootstrap": 100}}, {"similarity": {"subsample": 40}}):
        with pytest.raises(StudyError, match="unknown key"):
            study(tmp_path, asked)


# ---- A28: no intervals ----------------------------------------------------------------------------------------------------------------


def test_a28_every_mean_over_prompts_has_its_interval_and_every_value_its_prompt(edited: Finished) -> None:
    of_prompts = edited.rows.filter(pl.col("metric").str.starts_with("kl_") | pl.col("metric").str.starts_with("js_"))
    assert of_prompts["prompt"].null_count() == 0
    means = edited.summary.filter(pl.col("metric").str.contains("^(kl|js)_"))
    assert len(means) > 300
    assert means.select(pl.col("ci_low", "ci_high", "n", "sd").null_count()).row(0) == (0, 0, 0, 0)
    assert (means["ci_low"] <= means["mean"]).all()
    assert (means["mean"] <= means["ci_high"]).all()
    positive = means.filter(pl.col("log_mean").is_not_null())
    assert (positive["log_low"] <= positive["log_high"]).all()
    d = edited.one("divergence", "kl_tuned_base_nats", unit=None)
    values = edited.of("divergence", "kl_tuned_base_nats", unit=None)["value"]
    assert d["mean"] == pytest.approx(values.mean())
    assert (d["median"], d["n"]) == (pytest.approx(values.median()), len(values))


# ---- the table ------------------------------------------------------------------------------------------------------------------------

TABLE = Path(__file__).parents[2] / "docs" / "FAULTS.md"


def test_every_fault_has_a_row_and_every_named_test_exists() -> None:
    of_prototype = TABLE.read_text(encoding="utf-8").split("# Mechdiff's own faults")[0]
    lines = [line.strip("|").split("|") for line in of_prototype.splitlines() if re.match(r"\| A\d+ \|", line)]
    numbers = [line[0].strip() for line in lines]
    assert numbers == [f"A{number}" for number in range(1, 31)]
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_faults_of_*.py"))
    there = set(re.findall(r"^def (test_a\d\d_\w+)", written, re.MULTILINE))
    named: set[str] = set()
    for number, *_, tests in lines:
        mine = set(re.findall(r"`(test_\w+)`", tests))
        assert mine, number
        assert all(name.startswith(f"test_a{int(number.strip()[1:]):02d}_") for name in mine), number
        named |= mine
    assert named == there
