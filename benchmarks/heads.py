"""How long heads take on an embedded pair of which every block changed (kazakh), on all of its report prompts:

    python benchmarks/heads.py

- the map: 270 heads, key-value groups, whole layers and MLPs, both directions;
- Shapley values of one layer's heads from 64 sampled permutations, one direction (all sets are as few here, but a model with more heads samples);
- the same runs by one whole hooked forward pass each, timed on a few and multiplied, in the same process: the ratio is what a speed claim is.
"""

import tempfile
import time
from pathlib import Path

import torch

from mechdiff.demo import demo_study
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import Variant, Write, full
from mechdiff.engine.sites import Site
from mechdiff.study.artifacts import RunFolder
from mechdiff.study.config import RunOptions, make_study
from mechdiff.study.prepare import prepare
from mechdiff.study.run import execute

FEW = 24
"""Whole forward passes that are timed."""
SHAPLEY = {
    "exact_up_to": 1,
    "permutations": 64,
    "draws": 0,
    "null_edits": 0,
    "network_draws": 0,
    "attention_prompts": 0,
    "top": 2,
    "picks": 1,
}


def main() -> None:
    given = demo_study("kazakh").model_dump(mode="json")
    given["measures"] = [{"heads": {**SHAPLEY, "hot": 1}}]
    prepared = prepare(make_study(given), RunOptions())
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = execute(prepared, RunFolder.open(Path(folder), prepared.study, prepared.config_hash))
        spent = [line.split(" ", 1)[1] for line in (Path(folder) / "log.txt").read_text().splitlines()]
    taken: dict[str, float] = {}
    for line in spent:
        title, _, seconds = line.rpartition(": ")
        if seconds.endswith(" s"):
            taken[title.split(",")[0]] = taken.get(title.split(",")[0], 0.0) + float(seconds.removesuffix(" s"))
    runs = {cell.title: 0 for cell in prepared.plan.cells}
    for cell in prepared.plan.cells:
        runs[cell.title] += int(cell.key.get("n_variants", 0)) * len(cell.items)
    ids = [one.ids_tuned for one in prepared.rendered["report"].values()]
    slow = whole_pass(prepared, ids)
    print(f"{len(ids)} report prompts, {torch.get_num_threads()} threads, {len(rows)} rows; one whole hooked pass: {1000 * slow:.0f} ms")
    for title, seconds in taken.items():
        if title.startswith("head"):
            by_hand = runs.get(title, 0) * slow
            print(
                f"  {title:28}{seconds:8.1f} s   {runs.get(title, 0):7} runs planned, by whole passes {by_hand / 60:6.0f} min: {by_hand / seconds:4.0f} x"
            )


def whole_pass(prepared, ids) -> float:  # type: ignore[no-untyped-def]
    """Seconds of one hooked forward pass of one prompt, in the middle of its length."""
    with prepared.pair.use("tuned") as model:
        clean = capture(model, sorted(ids, key=len)[len(ids) // 2], [], [0])
        write = Write(value=torch.ones(1, 1, model.shape.d_model), add=True)
        variants: list[Variant] = [{Site(layer % model.shape.n_layers, "attn_proj"): write} for layer in range(FEW)]
        full(model, [clean], variants[:2])
        started = time.perf_counter()
        full(model, [clean], variants)
        return (time.perf_counter() - started) / (FEW + 1)


if __name__ == "__main__":
    main()
