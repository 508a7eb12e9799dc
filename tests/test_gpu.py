"""The same commands with --device cuda. Skipped where there is no GPU."""

from pathlib import Path

import polars as pl
import pytest
import torch

from mechdiff.api import run
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES, Write, full
from mechdiff.engine.selfcheck import self_check
from mechdiff.models.pair import wrap
from mechdiff.rows import KEY
from mechdiff.store.tables import read_manifest
from mechdiff.study.config import RunOptions
from pico import CONFIGS, pico, prompts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fast_engine_is_the_full_forward_pass_on_a_gpu(name: str) -> None:
    model = wrap(pico(name).net.cuda(), side="base", ref=name)
    engine = ENGINES[engine_for(model.config)[0]]
    assert self_check(model, prompts(3), engine=engine).replay_nats < 1e-6
    clean = capture(model, prompts(1, seed=4)[0], [], [0], keep_cache=engine is ENGINES["replay"])
    written = [{Site(layer, "mlp_out"): Write(value=torch.randn(1, 1, 32, device="cuda"))} for layer in range(4)]
    torch.testing.assert_close(engine(model, [clean], written), full(model, [clean], written), rtol=0, atol=1e-4)


def test_property_22_a_study_on_a_gpu_gives_the_numbers_of_the_cpu(pair: Path, tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        done = run(
            base=str(pair / "base"), tuned=str(pair / "tuned"), prompts=pair / "prompts.jsonl", out=tmp_path / device,
            options=RunOptions(device=device),
        )  # fmt: skip
        assert read_manifest(done.path)["device"].startswith(device)
        found[device] = done.rows().filter(pl.col("control").is_null(), pl.col("metric").str.ends_with("_nats"))
    both = found["cpu"].join(found["cuda"], on=KEY, nulls_equal=True, how="full", suffix="_cuda")
    assert both["value_cuda"].null_count() == both["value"].null_count() == 0
    assert (both["value"] - both["value_cuda"]).abs().max() < 1e-5  # type: ignore[operator]
