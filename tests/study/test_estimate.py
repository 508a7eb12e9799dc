"""What `plan` says of a study: time from the plan's own counts, memory from the weights' dtype, GPUs from memory."""

import io
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from mechdiff.cli.printing import planned, show_plan
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.study import estimate as study_estimate
from mechdiff.study.config import RunOptions, StudyConfig
from mechdiff.study.estimate import Machine, estimate, this_machine
from mechdiff.study.prepare import prepare
from pico import pico

MACHINE = Machine(name="a machine", flops=1e9, seconds_a_logit=0, bytes_a_second=1e6, fixed=7)
PRODUCT = 2 * 512 * 1536 * 1536
"""Floating-point operations of the product that is measured."""
LLAMA_8B = {"n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "d_mlp": 14336, "vocab": 128256}


def study(pair: Path, measures: list[Any], **more: Any) -> StudyConfig:
    models = {"base": str(pair / "base"), "tuned": str(pair / "tuned")}
    return make_study({"pair": models, "prompts": {"file": str(pair / "prompts.jsonl")}, "measures": measures, **more})


def absent(pair: Path, dtype: str) -> StudyConfig:
    """Of models that are not here."""
    models = {"base": "nobody/base", "tuned": "nobody/tuned", "shape": LLAMA_8B}
    return make_study(
        {"pair": models, "prompts": {"file": str(pair / "prompts.jsonl")}, "measures": ["divergence", "grafting"], "dtype": dtype}
    )


def test_time_is_operations_over_the_rate_and_weights_over_the_bandwidth(pair: Path) -> None:
    asked = study(pair, [{"divergence": {"over_text": False}}, {"behaviour": {"scored_prompts": 0, "max_tokens": 10, "probes": False}}])
    found = estimate(asked, EXPERIMENTS, machine=MACHINE)
    cells = [cell for cell in prepare(asked, RunOptions(), EXPERIMENTS).plan.cells if cell.stage == "behaviour"]
    assert [cell.steps for cell in cells] == [10, 10]
    one_model = 4 * sum(parameter.numel() for parameter in pico("llama").net.parameters())
    assert found.stages["behaviour"][3] == pytest.approx(sum(cell.flops for cell in cells) / 1e9 + 20 * one_model / 1e6)
    assert found.seconds == pytest.approx(7 + sum(seconds for *_, seconds in found.stages.values()))


def test_texts_behind_a_prompt_are_counted_in_its_models_tokens(pair: Path) -> None:
    plan = prepare(study(pair, [{"behaviour": {"probes": False}}]), RunOptions(), EXPERIMENTS).plan
    cell = next(cell for cell in plan.cells if cell.stage == "behaviour")
    assert all(15 < item.text_tokens < 60 for item in cell.items)  # English openings in bytes


@pytest.mark.parametrize(("dtype", "entry", "other"), [("float32", 4, 4), ("bfloat16", 2, 2), ("int8", 1, 2), ("nf4", 0.5625, 2)])
def test_memory_is_the_dtypes(pair: Path, dtype: str, entry: float, other: float) -> None:
    found = estimate(absent(pair, dtype), EXPERIMENTS, machine=MACHINE)
    blocks = 32 * (4096 * 128 * 2 * (32 + 8) + 3 * 4096 * 14336)
    each = blocks * entry + 128256 * 4096 * other
    assert found.gpu - found.gpu_one == pytest.approx(each)
    assert found.gpu == pytest.approx(2 * each, rel=0.1)
    assert found.memory > found.gpu
    assert ("grafting" in [one["what"] for one in found.skipped]) == (dtype in ("int8", "nf4"))


def test_gpus_are_counted_with_a_tenth_left_free(pair: Path) -> None:
    found = estimate(absent(pair, "bfloat16"), EXPERIMENTS, machine=MACHINE)
    assert found.gpus(80 << 30) == (1, 1)
    assert found.gpus(24 << 30) == (2, 1)
    assert found.gpus(int(found.gpu)) == (2, 1)
    assert estimate(absent(pair, "nf4"), EXPERIMENTS, machine=MACHINE).gpus(24 << 30) == (1, 1)


def timed(monkeypatch: pytest.MonkeyPatch, wall: float, processor: float) -> list[float]:
    """Makes a product take so many seconds by the clock, in which two threads compute for `processor` seconds each; returns what the clock says."""
    clock, of_process = (itertools.count(step=step) for step in (wall, 2 * processor))
    read: list[float] = []

    def now() -> float:
        read.append(next(clock))
        return read[-1]

    monkeypatch.setattr(study_estimate, "time", SimpleNamespace(perf_counter=now, process_time=lambda: next(of_process)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(study_estimate.os, "cpu_count", lambda: 2)
    return read


@pytest.mark.parametrize(("takes", "tries"), [(0.001, 40), (0.3, 4), (2.0, 1)])
def test_a_slow_machine_is_timed_in_a_second(takes: float, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product in bfloat16 took two seconds of a processor without instructions for it, and `plan` two minutes for forty."""
    read = timed(monkeypatch, takes, takes)
    assert study_estimate._quiet(torch.ones(1, 1), torch.ones(1, 1)) == pytest.approx((takes, 1))
    assert len(read) == 2 * tries


def plan_on(monkeypatch: pytest.MonkeyPatch, pair: Path, wall: float, processor: float) -> tuple[Machine, str]:
    """The machine, and what `plan` prints, where a product takes `wall` seconds, in which two threads compute for `processor` seconds each."""
    timed(monkeypatch, wall, processor)
    this_machine.cache_clear()
    printed = Console(width=200, record=True, quiet=False, file=io.StringIO())
    show_plan(planned(study(pair, ["divergence"]), None), printed)
    found = this_machine("float32")
    this_machine.cache_clear()
    return found, printed.export_text()


def test_a_quiet_machine_is_measured_by_the_clock(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, printed = plan_on(monkeypatch, pair, wall=0.02, processor=0.018)
    assert found.flops == pytest.approx(0.6 * PRODUCT / 0.02)
    assert found.stray == 1
    assert "shared" not in printed


def test_on_a_shared_machine_the_time_is_of_a_quiet_one_and_plan_says_so(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, printed = plan_on(monkeypatch, pair, wall=0.08, processor=0.02)
    alone, _ = plan_on(monkeypatch, pair, wall=0.02, processor=0.02)
    assert found.stray == pytest.approx(4)
    assert (found.flops, found.bytes_a_second) == pytest.approx((alone.flops, alone.bytes_a_second))
    assert "shared    that time is of a quiet machine" in printed
    assert "4.0 times as long now" in printed
