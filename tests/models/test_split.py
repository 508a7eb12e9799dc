"""A model that is split over devices, here memory and disk, gives what it gives in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mechdiff.errors import ModelError
from mechdiff.models import pair as models_pair
from mechdiff.models.pair import open_pair
from mechdiff.study.config import RunOptions
from runs import run

pytestmark = pytest.mark.ci


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_pair, "MOST", {"cpu": 100_000})


def test_blocks_that_do_not_fit_lie_on_disk(pair: Path, little_memory: None) -> None:
    opened = open_pair(str(pair / "base"), str(pair / "tuned"), device="split")
    with opened.use("base") as model:
        places = model.net.hf_device_map
        assert "disk" in places.values()
        assert model.device == torch.device("cpu")
        assert any(parameter.is_meta for parameter in model.net.parameters())


FEW: list[Any] = ["divergence", "weights", {"similarity": {"permutations": 5}}, {"patching": {"sites": ["resid_post", "attn_out"]}}]
FEWER: list[Any] = ["divergence", {"patching": {"sites": ["attn_out"]}}]
MORE: list[Any] = [
    {"rank": {"sites": ["resid_post"], "closer": [1]}}, {"heads": {"closer": [1], "draws": 4, "null_edits": 0}}, "attribution", "steering",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "measures",
    [FEWER, pytest.param(FEW, marks=pytest.mark.slow), pytest.param(["divergence", *MORE], marks=pytest.mark.slow)],
    ids=["fewer", "few", "more"],
)
def test_a_split_pair_gives_the_rows_of_one_in_memory(pair: Path, tmp_path: Path, little_memory: None, measures: list[Any]) -> None:
    given = {"base": str(pair / "base"), "tuned": str(pair / "tuned"), "prompts": str(pair / "prompts.jsonl"), "measures": measures}
    whole = run(**given, out=tmp_path / "whole", page=False, options=RunOptions(device="cpu", threads=1))
    split = run(**given, out=tmp_path / "split", options=RunOptions(device="split", threads=1))
    assert split.manifest()["device"] == "split"
    assert split.rows().equals(whole.rows(), null_equal=True)
    with pytest.raises(ModelError, match=r"base: .* tensors lie on disk .* Leave the measure grafting out, or give it a device with room"):
        run(**{**given, "measures": ["grafting"]}, out=tmp_path / "grafting", options=RunOptions(device="split", threads=1))
