"""One run of a pair in memory with one changed matrix, for the tests of what Python says of a run."""

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import mechdiff
from mechdiff import api
from mechdiff.validate.made import CHATML, byte_tokenizer, tiny_net

SEEN: list[tuple[int, dict[str, float]]] = []


@pytest.fixture(scope="session")
def held() -> dict[str, Any]:
    """A base of four blocks, a tuned model with one other matrix (L2.mlp.down_proj), and their tokenizer."""
    model = tiny_net()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(1)
        weight = tuned.model.layers[2].mlp.down_proj.weight
        weight.add_(torch.randn_like(weight) * 0.3)
    return {"model": model, "tuned": tuned, "tokenizer": byte_tokenizer(CHATML)}


@pytest.fixture(scope="session")
def finished(held: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> mechdiff.Run:
    folder = tmp_path_factory.mktemp("python") / "run"
    answers = {"max_tokens": 4, "probes": False, "openings": 1, "scored_prompts": 0, "spoken_prompts": 0}
    measures = ["divergence", "weights", {"patching": {"layers": [2]}}, {"behaviour": answers}]
    SEEN.clear()
    with pytest.MonkeyPatch.context() as changed:  # its page is looked at elsewhere
        changed.setattr(api, "build_report", lambda place, chapters: None)
        changed.setattr(api, "_live", lambda folder, prepared, opened: nullcontext(lambda look: None))
        return mechdiff.diff(
            held["model"], held["tuned"], [f"Say {number}" for number in range(12)], tokenizer=held["tokenizer"], out=folder, progress=False,
            measures=measures, answers={"tokens": 4, "prompts": 2}, on_event=lambda step, numbers: SEEN.append((step, numbers)),
        )  # fmt: skip


@pytest.fixture
def seen(finished: mechdiff.Run) -> list[tuple[int, dict[str, float]]]:
    """What `on_event` heard of the run."""
    return SEEN


@pytest.fixture
def of_run(finished: mechdiff.Run, tmp_path: Path) -> mechdiff.Run:
    """The same in a folder of its own, without its work."""
    shutil.copytree(finished.path, tmp_path / "run", ignore=shutil.ignore_patterns("cells"))
    return mechdiff.open_run(tmp_path / "run")
