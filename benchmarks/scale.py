# ruff: noqa: E501 (the page's lines)
"""What a study costs elsewhere, by the model that `mechdiff plan` uses, and that model against runs here.

python benchmarks/scale.py [--paper]      about five minutes on two cores; writes docs/SCALE.md; exit code 1 where plan and run are 30 % apart

`--paper`: only the arithmetic, with the runs that were measured last.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import mechdiff
from mechdiff.demo import DATA, embedded_model
from mechdiff.measures.catalogue import EXPERIMENTS, load_study, make_study
from mechdiff.study.config import StudyConfig
from mechdiff.study.estimate import Estimate, Machine, estimate

ROOT = Path(__file__).parents[1]
PAGE, FOUND = ROOT / "docs" / "SCALE.md", ROOT / "benchmarks" / "scale.json"
H100 = Machine(name="one 80 GB H100 in bfloat16", flops=0.4 * 989e12, seconds_a_logit=50 / 3.35e12, bytes_a_second=0.7 * 3.35e12, fixed=60)
"""40 % of the data sheet's dense rate; 50 bytes moved for a logit (three laws in float32, centred sums) at 3.35 TB/s; weights at 70 % of that."""
BIG = {"n_layers": 80, "d_model": 8192, "n_heads": 64, "n_kv_heads": 8, "d_mlp": 28672, "vocab": 128256}
GIB = 2**30
WITHIN = 0.30
STUDIES: dict[str, list[Any]] = {
    "where": ["divergence", "similarity", {"patching": {"sites": ["resid_post", "attn_out", "mlp_out"]}}],
    "weights": ["divergence", "weights", "grafting"],
    "maps": ["divergence", {"transport": {"sites": ["resid_post"]}}, {"rank": {"sites": ["resid_post"]}}],
    "heads": ["divergence", {"patching": {"sites": ["attn_out"]}}, "heads"],
    "behaviour": ["divergence", "behaviour"],
}


def small(measures: list[Any]) -> StudyConfig:
    """A study of the embedded Kazakh fine-tune, on a dozen prompts of each split."""
    prompts = {split: str(DATA / "prompts" / f"kazakh_{split}.jsonl") for split in ("fit", "select", "report")}
    pair = {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / "kazakh")}
    return make_study({"pair": pair, "prompts": {**prompts, "at_most": {"fit": 24, "select": 8, "report": 12}}, "measures": measures})


def measured() -> list[dict[str, Any]]:
    """Each study planned, then run: seconds of both, from a cold start to the page."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, measures in STUDIES.items():
            study = small(measures)
            planned = estimate(study, EXPERIMENTS).seconds
            started = time.perf_counter()
            run = mechdiff.run(study, out=Path(folder) / name)
            took = time.perf_counter() - started
            stages = {stage: round(seconds, 1) for stage, seconds in run.manifest()["seconds"].items()}
            found.append({"name": name, "planned": round(planned, 1), "took": round(took, 1), "stages": stages})
            print(f"{name}: planned {planned:.0f} s, took {took:.0f} s ({planned / took - 1:+.0%})", flush=True)
    return found


def on_paper(shape: dict[str, Any] | None = None, dtype: str = "bfloat16") -> Estimate:
    """The eight-billion study that ships, or the same of another shape or dtype, on one H100."""
    study, _ = load_study(ROOT / "studies" / "llama31_base_openmath2.yaml")
    said = study.model_dump(mode="json", exclude_defaults=True) | {"dtype": dtype}
    pair = study.pair.model_dump(mode="json")
    return estimate(make_study({**said, "pair": {**pair, "shape": shape or pair["shape"]}}), EXPERIMENTS, machine=H100)


def memory_of(shape: dict[str, Any] | None) -> list[str]:
    """GPU memory by dtype, and how many GPUs hold it."""
    rows = ["| dtype | both models, GiB | GPUs of 80 GiB | one at a time, GiB | GPUs of 80 GiB |", "|---|---|---|---|---|"]
    for dtype in ("bfloat16", "int8", "nf4"):
        found = on_paper(shape, dtype)
        both, one = found.gpus(80 << 30)
        rows.append(f"| {dtype} | {found.gpu / GIB:.0f} | {both} | {found.gpu_one / GIB:.0f} | {one} |")
    return rows


def lines_of(found: Estimate) -> list[str]:
    rows = [
        f"| {stage} | {cells:,} | {runs:,} | {flops:.2g} | {seconds:,.0f} |"
        for stage, (cells, runs, flops, seconds) in found.stages.items()
    ]
    return ["| stage | cells | patched forward passes | operations | seconds |", "|---|---|---|---|---|", *rows]


def page(runs: list[dict[str, Any]]) -> str:
    """docs/SCALE.md."""
    eight, seventy = on_paper(), on_paper(BIG)
    hours = eight.seconds / 3600
    workers = 8 // seventy.gpus(80 << 30)[1]
    table = [f"| {one['name']} | {one['planned']:.0f} | {one['took']:.0f} | {one['planned'] / one['took'] - 1:+.0%} |" for one in runs]
    return "\n".join([
        "# From one laptop to a cluster",
        "",
        "## How",
        "",
        "```bash",
        "pip install 'mechdiff[ray]'                          # on every machine, the same versions: a worker with others is refused by name",
        "ray start --head                                     # on one; `ray start --address HEAD:6379` on the others",
        "mechdiff run STUDY.yaml --ray auto --out /shared/run # one run; several study files are a sweep: --at-once 8",
        "mechdiff status /shared/run                          # how far, from any machine",
        "```",
        "",
        "Workers hold the pair and take the study's cells: a shard of prompts under a set of edits. What they share is the place where finished cells lie: the",
        "run's folder, or `--cells s3://bucket/run` (any fsspec URL). Models and prompts must be there under the same paths, with the same hashes. A worker or a",
        "node that dies costs what it was computing; the same command goes on where all ended, here or there, with the same bits on the same kind of machine.",
        "`--workers`, `--threads` and `--gpus-per-worker` say how many and how large (0.5: two share a GPU; 2: a model is split over two).",
        "",
        "Written by `python benchmarks/scale.py`. No number of the next three sections was measured: they are the plan's operations over a machine's",
        f"rates ({H100.name}: {H100.flops:.3g} operations a second reached, {H100.seconds_a_logit:.2g} s a logit, weights read at",
        f"{H100.bytes_a_second:.2g} bytes a second). Statistics and figures run on the CPU and take minutes more. The last section holds the same model",
        "against runs on two cores.",
        "",
        "## An 8B pair on one 80 GB GPU",
        "",
        f"`studies/llama31_base_openmath2.yaml`, in bfloat16: {eight.seconds / 60:,.1f} minutes of GPU. Captured states, {eight.disk / GIB:.1f} GiB, lie in the",
        "machine's own memory and on disk. Of the GPU's memory weights and the largest pass take",
        "",
        *memory_of(None),
        "",
        *lines_of(eight),
        "",
        "## A 70B pair on eight",
        "",
        "The same study with 80 blocks of width 8,192. `--device split` puts blocks on one GPU after the other, so one computes at a time:",
        f"{seventy.seconds / 60:,.0f} minutes. With one model at a time a worker needs {seventy.gpus(80 << 30)[1]} of the eight, so `--ray auto --memory one --gpus-per-worker {8 // workers}`",
        f"has {workers} workers and takes {seventy.seconds / 60 / workers:,.0f} minutes. (Splitting was tried over memory and disk, with the same bits; not over GPUs.)",
        "",
        *memory_of(BIG),
        "",
        "A rounded model (int8, nf4) is another model than its files say, and is not grafted: `mechdiff plan` says so.",
        "",
        *lines_of(seventy),
        "",
        "## A thousand 8B pairs on a cluster",
        "",
        "`mechdiff run STUDIES/*.yaml --ray ADDRESS --gpus-per-worker 1 --workers 1 --at-once 100` on 100 GPUs:",
        f"1,000 × {hours:.3f} h / 100 = {10 * hours:,.1f} hours, and 32 GB of weights to load for each (at 2 GB/s {1000 * 16 / 100 / 60:.0f} minutes of the whole).",
        f"States, if kept: {1000 * eight.disk / GIB / 1024:.1f} TiB; put `--cells` where there is room.",
        "",
        "## The plan against runs here",
        "",
        "SmolLM2-135M and the embedded Kazakh fine-tune, two cores, from a cold start to the page, in seconds.",
        "",
        "| study | planned | took | apart |",
        "|---|---|---|---|",
        *table,
        "",
    ])  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--paper", action="store_true")
    if not asked.parse_args().paper:
        torch.set_num_threads(2)
        FOUND.write_text(json.dumps(measured(), indent=1) + "\n")
    runs = json.loads(FOUND.read_text())
    PAGE.write_text(page(runs), encoding="utf-8")
    worst = max(abs(one["planned"] / one["took"] - 1) for one in runs)
    print(f"plan and run at most {worst:.0%} apart")
    sys.exit(worst > WITHIN)


if __name__ == "__main__":
    main()
