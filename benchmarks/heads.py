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

from mechdiff.api import run
from mechdiff.architectures.sites import Site
from mechdiff.demo import demo_study
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import Variant, Write, full
from mechdiff.models.pair import open_pair

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
    study = demo_study("kazakh")
    prompts = {split: str(path) for split, path in study.prompts.sources().items()}
    with tempfile.TemporaryDirectory() as folder:
        measures = [{"heads": {**SHAPLEY, "hot": 1}}]
        done = run(base=study.pair.base, tuned=study.pair.tuned, prompts=prompts, measures=measures, out=Path(folder) / "run")
        taken = by_stage((done.path / "log.txt").read_text())
        n_rows, report = len(done.rows()), done.manifest()["prompts"]["n"]["report"]
    slow = whole_pass(study.pair.base, study.pair.tuned)
    print(f"{report} report prompts, {torch.get_num_threads()} threads, {n_rows} rows; one whole hooked pass {1000 * slow:.0f} ms")
    print("seconds, runs of these sets on the report prompts, and what whole passes would take for them")
    planned = {
        "heads tuned<-base": (9 + 3 + 2) * 30,
        "heads base<-tuned": (9 + 3 + 2) * 30,
        "head_sets tuned<-base": 2**9,
        "head_sets base<-tuned": 2**9,
    }
    for title, seconds in taken.items():
        if title in planned:
            by_hand = planned[title] * report * slow
            print(f"  {title:24}{seconds:8.1f} s{planned[title] * report:8} runs{by_hand / 60:8.0f} min, {by_hand / seconds:.0f} times")


def by_stage(log: str) -> dict[str, float]:
    """Seconds by a cell's title, over shards; the cells of the select split among them."""
    taken: dict[str, float] = {}
    for line in log.splitlines():
        title, _, seconds = line.split(" ", 1)[1].rpartition(": ")
        if seconds.endswith(" s"):
            title = title.split(",")[0]
            taken[title] = taken.get(title, 0.0) + float(seconds.removesuffix(" s"))
    return taken


def whole_pass(base: str, tuned: str) -> float:
    """Seconds of one hooked forward pass of a prompt of 60 tokens."""
    with open_pair(base, tuned, device="cpu").use("tuned") as model:
        clean = capture(model, list(range(100, 160)), [], [0])
        write = Write(value=torch.ones(1, 1, model.shape.d_model), add=True)
        variants: list[Variant] = [{Site(layer % model.shape.n_layers, "attn_proj"): write} for layer in range(FEW)]
        full(model, [clean], variants[:2])
        started = time.perf_counter()
        full(model, [clean], variants)
        return (time.perf_counter() - started) / (FEW + 1)


if __name__ == "__main__":
    main()
