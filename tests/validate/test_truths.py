"""Every planted truth comes out; and a truth that is broken is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pico
from mechdiff.architectures.sites import Site
from mechdiff.cli import main as cli
from mechdiff.engine import distributions
from mechdiff.errors import MechdiffError, ModelError
from mechdiff.measures.heads import formula as heads_formula
from mechdiff.measures.patching import formula as patching_formula
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.validate import edits, nulls, organism, planted, power, studies, truths, truths_heads, truths_words, validation
from mechdiff.validate.checks import above, at_most, near, said, same
from mechdiff.validate.planted import Bench, tiny_bench
from tokenizers_made import CHATML, byte_tokenizer

pytestmark = pytest.mark.ci

NAN = float("nan")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


WHOLE = {
    studies.p0: "ci", studies.p1: "slow", studies.p2: "slow", studies.p6: "slow", studies.p7: "slow", nulls.p20: "slow", organism.p17: "slow",
    truths_words.p22: "slow", truths_words.p22_amplified: "slow",
}  # fmt: skip
"""Truths of whole studies, of hundreds of simulated ones, or of a network that is trained for them: ten seconds and more each."""
TRUTHS = [
    pytest.param(
        truth, marks=getattr(pytest.mark, WHOLE[truth]) if truth in WHOLE else (), id=f"{name} of {truth.__module__.split('.')[-1]}"
    )
    for name, of in validation.TRUTHS.items()
    for truth in of
]


@pytest.mark.parametrize("truth", TRUTHS)
def test_planted_truth(bench: Bench, truth: validation.Truth) -> None:
    checks = list(truth(bench))
    assert checks
    failed = [f"{one.what}: expected {one.expectation}, found {said(one.found)}" for one in checks if not one.passed]
    assert not failed


@pytest.mark.parametrize("name", ["P0", "P2", "P3", "P4a", "P12", "P13", "P19"])
def test_another_network_says_the_same(name: str) -> None:
    """Nothing is tuned to one draw of the weights."""
    other = tiny_bench(seed=5)
    first = validation.TRUTHS[name][0]
    assert [check.what for check in first(other) if not check.passed] == []


# ---- a check can fail ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [near("x", [1, 1.2], 1, 0.1), near("x", NAN, 1, 0.1), at_most("x", [1, 3], 2), at_most("x", [1, NAN], 2), above("x", [2, 3], 2),
     above("x", NAN, 0), same("x", {1}, {1, 2})],
)  # fmt: skip
def test_a_check_fails(check: Any) -> None:
    assert not check.passed


def test_a_check_shows_the_number_that_comes_nearest_to_failing() -> None:
    assert near("x", [1, 1.05, 0.9], 1, 0.2).found == pytest.approx(0.9)
    assert at_most("x", [1, 7, 3], 9).found == 7
    assert above("x", [4, 2], 1).found == 2
    assert near("x", [0, 1.0], [0, 1], 1e-9).found == [0, 1]
    assert near("x", 1, 1, 1e-9).expectation == "= 1 ± 1e-09"


def wrong_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """A7: what was read at the attention's output is written over the block's."""
    right = patching_formula.variants

    def shifted(kind: str, layers: Any, written: Any) -> Any:
        return right("resid_post" if kind == "attn_out" else kind, layers, written)

    monkeypatch.setattr(planted, "variants", shifted)


def next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are written one block too high."""
    right = patching_formula.variants

    def shifted(kind: str, layers: Any, written: Any) -> Any:
        return [{Site(min(site.layer + 1, 3), site.kind): write for site, write in one.items()} for one in right(kind, layers, written)]

    monkeypatch.setattr(planted, "variants", shifted)


def swapped_z(monkeypatch: pytest.MonkeyPatch) -> None:
    """A24: the output projection's inputs are swapped instead of contributions."""
    monkeypatch.setattr(
        heads_formula.Block, "change", lambda self, arm="contribution": heads_formula.written(self.other - self.own, self.w_own)
    )


def biased_cka(monkeypatch: pytest.MonkeyPatch) -> None:
    """A22: the biased estimator."""
    right = similarity_formula._cka
    monkeypatch.setattr(similarity_formula, "_cka", lambda x, y, *, debiased: 1.1 * right(x, y, debiased=False))


def half_kl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KL to the first power of the change."""
    monkeypatch.setattr(truths, "NOISE", (0.001, 0.002, 0.005, 0.01))
    monkeypatch.setattr(planted, "kl_nats", lambda p, q: distributions.kl_nats(p, q).sqrt())


def rank_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit has rank 3."""
    right = edits.add_low_rank
    monkeypatch.setattr(edits, "add_low_rank", lambda weight, rank, size, seed=7: right(weight, rank + 1, size, seed))


BROKEN: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Bench], Any], str]] = [
    (wrong_site, truths.p2, "attn_out of block 1"),
    (wrong_site, truths.p3, "attn_out of blocks up to 1"),
    (next_block, truths.p2, "first block"),
    (next_block, truths.p3, "mlp_out of block 1"),
    (swapped_z, truths_heads.p4a, "effect of all heads in nats"),  # there is none, and a share of nothing tells nothing
    (swapped_z, truths_heads.p10, "swapping all contributions"),
    (biased_cka, truths.p0, "CKA"),
    (half_kl, truths.p8, "slope of log D"),
    (rank_one_too_many, truths.p2, "rank of the change"),
]


@pytest.mark.bits
@pytest.mark.parametrize(("fault", "truth", "told"), BROKEN, ids=lambda one: getattr(one, "__name__", None))
def test_a_fault_is_told(monkeypatch: pytest.MonkeyPatch, bench: Bench, fault: Any, truth: Any, told: str) -> None:
    fault(monkeypatch)
    with np.errstate(all="ignore"):
        failed = [check.what for check in truth(bench) if not check.passed]
    assert any(told in what for what in failed), failed


def test_an_untrained_organism_is_told(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.setattr(organism, "STEPS", 1)
    failed = {check.what for check in organism.p17(bench) if not check.passed}
    assert any("get the answer" in what for what in failed)


# ---- the user's model ----------------------------------------------------------------------------------------------------------------


def stored(name: str, folder: Path) -> str:
    pico.save(pico.pico(name).net, byte_tokenizer(CHATML), folder)
    return str(folder)


@pytest.mark.bits
@pytest.mark.parametrize("name", pico.each(["gpt2", "gemma2", "mixtral", "bloom", "falcon", "lfm2", "phi", "granite"], usual=("lfm2",)))
def test_truths_hold_in_other_families(tmp_path: Path, name: str) -> None:
    found = validation.run(base=stored(name, tmp_path), with_power=False)
    failed = {f"{proof.truth}: {check.what} {check.expectation}, {said(check.found)}" for proof in found.proofs for check in proof.checks
              if not check.passed}  # fmt: skip
    assert not failed
    assert set(found.skipped) == {"mixtral": {"P3", "P8"}, "gemma2": {"P15"}, "lfm2": {"P4a", "P15"}}.get(name, set())
    assert {proof.truth for proof in found.proofs} | set(found.skipped) == set(validation.ANY_MODEL)


def test_power_rises_with_the_size_of_the_edit_and_leaves_the_network_as_it_was(bench: Bench) -> None:
    before = {name: tensor.clone() for name, tensor in bench.net.state_dict().items()}
    (alone,) = power.power(bench, sizes=(1e-9, 1e-7, 1e-4, 1e-2), draws=6)
    assert [point.size for point in alone.points] == [1e-7, 1e-4, 1e-2], "below a size that is hardly found nothing is tried"
    assert alone.points[0].found < 0.5
    assert alone.points[-1].found == 1
    beside = power.power(bench, background=0.003, sizes=(0.001, 1.0), draws=6)
    assert {curve.way for curve in beside} == {"output", "graft"}
    for curve in (alone, *beside):
        found = [point.found for point in curve.points]
        assert found == sorted(found)
        assert all(point.low <= point.found <= point.high for point in curve.points)
        assert curve.smallest == next(point.size for point in curve.points if point.found >= 0.8)
        assert (np.diff([point.d_nats for point in curve.points]) > 0).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.net.state_dict().items())


def test_the_smallest_edit_is_that_from_which_on_all_sizes_are_found() -> None:
    def curve(*found: float) -> power.Curve:
        points = [power.Point(size=10.0**i, draws=10, d_nats=1, found=one, low=0, high=1) for i, one in enumerate(found)]
        return power.Curve(way="onset", background=0, n_prompts=1, points=points)

    assert curve(0, 0.8, 0.5, 0.9, 1).smallest == 1000
    assert curve(0, 0.5, 0.7).smallest is None


# ---- the command ---------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_what_was_planted_and_found() -> None:
    shown = CliRunner().invoke(cli.app, ["validate", "--only", "P12,P7b"])
    assert shown.exit_code == 0
    assert "Noise on the unembedding alone." in shown.stdout
    assert "{head}" in shown.stdout
    assert "2 truths, 7 checks: all hold" in " ".join(shown.stdout.split())


def test_a_truth_that_does_not_hold_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "edit_unembedding", edits.edit_embedding)
    shown = CliRunner().invoke(cli.app, ["validate", "--only", "P12", "--json"])
    assert shown.exit_code == 1
    found = json.loads(shown.stdout)
    assert found["passed"] is False
    failed = [check for check in found["truths"][0]["checks"] if not check["passed"]]
    assert {"expected": ["head"], "found": ["embed"]}.items() <= next(one for one in failed if "units" in one["what"]).items()


def test_what_a_user_can_put_right(tmp_path: Path) -> None:
    with pytest.raises(MechdiffError, match=r"--only P99: no such truth is known\. There are: P0, P1"):
        validation.run(only=["P99"])
    with pytest.raises(MechdiffError, match=r"--only P17: no such truth can be planted in any model"):
        validation.run(base=str(tmp_path), only=["P17"])
    with pytest.raises(ModelError, match="no-such-model"):
        validation.run(base=str(tmp_path / "no-such-model"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    base = stored("llama", tmp_path / "base")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    with pytest.raises(ModelError, match="an adapter cannot be the base"):
        validation.run(base=str(adapter))
