"""What a GPU makes of the engine, in one go of at most six minutes: time and utilisation in two dtypes, and a study's rows beside the CPU's.

    python benchmarks/gpu.py                       where a GPU is at hand: prints the tables of docs/SPEED.md
    python benchmarks/gpu.py --device cpu --prompts 2 --dtypes float32      tries the script itself, without a GPU

A cell is that of benchmarks/speed.py: a base's state written at one site of the tuned model, at the last token, and the KL of what comes out. The
utilisation is the share of the rate that matrix products of the model's own sizes reach on the device in the same run.
"""

import argparse
import tempfile
import time
from pathlib import Path

import polars as pl
import speed
import torch

from mechdiff.api import run
from mechdiff.demo import DATA, embedded_model
from mechdiff.measures.catalogue import make_study
from mechdiff.rows import KEY
from mechdiff.store.tables import read_manifest
from mechdiff.study.config import RunOptions

FLOORS = 3
"""Rows of two devices may be apart by so many noise floors of the run that has the larger."""


def timed(dtype: str, device: str, n_prompts: int) -> list[str]:
    """Lines of a table: replay in two packings and plain hooks, ms a cell; utilisation."""
    with tempfile.TemporaryDirectory() as folder:
        bench = speed.prepare(n_prompts, dtype, Path(folder), device)
        rate, few = speed.matrix_rate(bench), speed.spread(n_prompts, min(2, n_prompts))
        lines = speed.contestants(bench, n_prompts, few, peers=False)
        for line in lines:
            line.kls = line.run()  # once, so that kernels are there
            line.seconds = speed.best(line.run, 3 if "replay" in line.name else 1)
        plain, text = lines[-1], []
        for line in lines:
            reached = speed.flops_a_cell(bench) / (line.cost / 1e3) / rate
            text.append(
                f"| {dtype} | {line.name} | {line.cost:.3f} | {plain.cost / line.cost:.0f} | {reached:.0%} of {rate / 1e12:.1f} TFLOP/s |"
            )
        return text


def rows_of(device: str, out: Path) -> tuple[pl.DataFrame, float]:
    """Rows of patches of the embedded Kazakh pair on some prompts, and the largest noise floor, in nats."""
    pair = {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / "kazakh")}
    prompts = {split: str(DATA / "prompts" / f"kazakh_{split}.jsonl") for split in ("select", "report")}
    patching = {"patching": {"arms": ["identity"], "stride": 6}}
    study = make_study({"pair": pair, "prompts": {**prompts, "at_most": {"select": 2, "report": 3}}, "measures": ["divergence", patching]})
    done = run(study, out=out, options=RunOptions(device=device))
    frame = done.rows().filter(pl.col("control").is_null(), pl.col("metric").str.ends_with("_nats"))
    return frame, max(read_manifest(done.path)["noise_floor"].values())


def beside_the_cpu(device: str) -> str:
    """A sentence: how far the device's rows are from the CPU's. Raises AssertionError where that is more than the floors allow."""
    with tempfile.TemporaryDirectory() as folder:
        (here, floor), (there, other) = (rows_of(one, Path(folder) / name) for one, name in (("cpu", "here"), (device, "there")))
    both = here.join(there, on=KEY, nulls_equal=True, how="full", suffix="_there").with_columns(
        apart=(pl.col("value") - pl.col("value_there")).abs()
    )
    assert both["apart"].null_count() == 0, "rows of one device that the other lacks"
    worst = both.sort("apart", descending=True).row(0, named=True)
    # a floor is a KL, second order in the logits' rounding; a KL of size v then moves by sqrt(8 v floor) at most to first order
    allowed = FLOORS * ((8 * both["value"].abs() * max(floor, other)).sqrt() + max(floor, other))
    assert (both["apart"] <= allowed).all(), f"further apart than {FLOORS} floors: {worst}"
    return (
        f"{len(both):,} rows on {device} and on the CPU: at most {worst['apart']:.1e} nats apart; floors {floor:.1e} and {other:.1e} nats."
    )


def main() -> None:
    """Print two tables and a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    chosen = parser.parse_args()
    started = time.perf_counter()
    name = torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "the CPU"
    print(f"On {name}:\n\n| dtype | tool | ms a cell | plain hooks / this | utilisation |\n|---|---|---|---|---|", flush=True)
    for dtype in chosen.dtypes.split(","):
        print("\n".join(timed(dtype, chosen.device, chosen.prompts)), flush=True)
    print(f"\n{beside_the_cpu(chosen.device)}\n\n{time.perf_counter() - started:.0f} s in all.")


if __name__ == "__main__":
    main()
