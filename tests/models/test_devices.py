"""In which dtype a pair runs where nobody says."""

from pathlib import Path

import pytest
import torch

from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.models import devices, pair
from mechdiff.models.devices import ROOM, settled
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare, with_dtype
from pico import pico, save
from tokenizers_made import byte_tokenizer

B, H, F = torch.bfloat16, torch.float16, torch.float32
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pair that is stored in bfloat16."""
    for seed, side in enumerate(("base", "tuned")):
        save(pico("llama", seed=seed).net.to(B), byte_tokenizer(), tmp_path / side)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in ("one", "two", "three", "four")))
    return tmp_path


@pytest.mark.parametrize(
    ("device", "stored", "dtype"),
    [
        (CPU, [B, B], "float32"),
        (GPU, [B, B], "bfloat16"),
        (GPU, [H], "float16"),
        (GPU, [B, H], "float32"),
        (GPU, [B, F], "float32"),
        (GPU, [F, F], "float32"),
        (GPU, [None], "float32"),
        (None, [B], "bfloat16"),
    ],
)
def test_auto_is_float32_on_a_cpu_and_as_stored_elsewhere(device: torch.device | None, stored: list[torch.dtype], dtype: str) -> None:
    assert settled(device, stored, lambda: 1) == dtype


@pytest.mark.parametrize(("stored", "over"), [(B, "bfloat16"), (F, "float32")])
def test_a_model_that_float32_leaves_no_room_for_runs_on_a_cpu_as_it_is_stored(
    stored: torch.dtype, over: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "all_memory", lambda device: 1000)
    assert settled(CPU, [stored], lambda: int(ROOM * 1000)) == "float32"
    assert settled(CPU, [stored], lambda: int(ROOM * 1000) + 1) == over


def test_what_was_settled_is_in_the_pair_the_study_and_its_identity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(dtype: str):
        study = {
            "pair": {side: str(folder / side) for side in ("base", "tuned")},
            "prompts": {"file": str(folder / "prompts.jsonl")},
            "dtype": dtype,
        }
        return prepare(
            make_study({**study, "measures": ["divergence"], "prompts": {**study["prompts"], "policy": "raw"}}),
            RunOptions(device="cpu"),
            EXPERIMENTS,
        )

    auto, stated = prepared("auto"), prepared("float32")
    assert (auto.pair.dtype, auto.study.dtype, auto.config_hash) == ("float32", "float32", stated.config_hash)
    assert auto.said == stated.said, "what is as it always was is not said"
    monkeypatch.setattr(devices, "all_memory", lambda device: 1)
    auto, stated = prepared("auto"), prepared("bfloat16")
    assert (auto.pair.dtype, auto.study.dtype, auto.config_hash) == ("bfloat16", "bfloat16", stated.config_hash)
    assert [line for line in auto.said if line.startswith("dtype auto: both models run in bfloat16, as they are stored, on cpu")]
    assert with_dtype(stated.study, stated.pair) == (stated.study, [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_runs_models_as_they_are_stored(folder: Path) -> None:
    opened = pair.open_pair(str(folder / "base"), str(folder / "tuned"), dtype="auto", device="cuda")
    with opened.use("base") as model:
        assert (opened.dtype, model.dtype) == ("bfloat16", B)
