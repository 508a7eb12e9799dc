"""A scan beside two plain batched forward loops: how fast, and in how much memory?

python benchmarks/scan.py [--texts 2000] [--sizes 500] [--batches 1 4 16 64]      a table in Markdown, for docs/SPEED.md

The embedded arithmetic pair (an adapter on every matrix of SmolLM2-135M) reads texts of 32 to 256 tokens, made of shipped ones. Each line is a
process of its own, in turn on one thread. The loop does what one would write: batches in the order of the corpus, padded on the right, whole logits
of base and tuned, log-softmaxes, KL both ways, both losses and top-1 agreement a token, means a text. The scan computes the same, with its counts,
and no directions. CPU seconds are of reading alone, of models that have run before; memory is the most that a process held beyond what it did with
both models loaded. The numbers of both must agree.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import mechdiff
from mechdiff.demo import embedded_model
from mechdiff.models.pair import SIDES, Pair, open_pair
from mechdiff.scanning import compute
from mechdiff.scanning.corpus import Asked, Scan

DATA = Path(mechdiff.__file__).parent / "data"


def texts(pair: Pair, n: int) -> Iterator[str]:
    """Shipped texts, one behind the other, cut to 32 to 256 tokens of the base."""
    draw, tokenizer = random.Random(0), pair.tokenizer("base")
    lines = [json.loads(line) for path in sorted((DATA / "panel").glob("*.jsonl")) for line in path.read_text().splitlines()]
    shipped = [one.get("text") or one["prompt"] for one in lines]
    for _ in range(n):
        length, said = draw.randint(32, 256), ""
        while len(ids := tokenizer(said)["input_ids"]) < length:
            said += draw.choice(shipped) + "\n"
        yield tokenizer.decode(ids[:length])


def held(what: str) -> float:
    """What this process holds now (VmRSS), or held at most since it was asked to count anew (VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def loop(pair: Pair, said: list[str], batch: int) -> list[tuple[float, ...]]:
    """Of each text the mean KL both ways, both losses and top-1 agreement."""
    tokenizer, found = pair.tokenizer("base"), []
    for start in range(0, len(said), batch):
        ids = [tokenizer(text)["input_ids"][:512] for text in said[start : start + batch]]
        longest = max(map(len, ids))
        table = torch.tensor([[*one, *[0] * (longest - len(one))] for one in ids])
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
        laws = {}
        for side in SIDES:
            with pair.use(side) as model, torch.inference_mode():
                laws[side] = model.net(input_ids=table, attention_mask=mask, use_cache=False).logits[:, :-1].log_softmax(-1)
        base, tuned, following = laws["base"], laws["tuned"], table[:, 1:, None]
        with torch.inference_mode():
            numbers = [
                (tuned.exp() * (tuned - base)).sum(-1), (base.exp() * (base - tuned)).sum(-1), -base.gather(-1, following)[..., 0],
                -tuned.gather(-1, following)[..., 0], (base.argmax(-1) == tuned.argmax(-1)).float(),
            ]  # fmt: skip
        for row, one in enumerate(ids):
            found.append(tuple(float(number[row, : len(one) - 1].double().mean()) for number in numbers))
    return found


def scan(pair: Pair, corpus: Path) -> list[tuple[float, ...]]:
    """The same, by the scan's own chunks."""
    found: list[tuple[float, ...]] = []
    read = Scan(pair=pair, asked=Asked(corpus=str(corpus), matrices=0))
    names = ("kl_tuned_base", "kl_base_tuned", "loss_base", "loss_tuned", "top1_same")
    for number in range(len(read.texts.chunks)):
        tensors, _ = compute.chunk(read, number, [])
        found += zip(*(tensors[f"text/{name}"].tolist() for name in names), strict=True)
    return found


def child(what: str, n: int, batch: int) -> dict[str, Any]:
    """One line: CPU seconds, memory beyond the models in MiB, and the numbers."""
    torch.set_num_threads(1)
    pair = open_pair(str(embedded_model()), str(DATA / "adapters" / "arithmetic"), device="cpu")
    said = list(texts(pair, n))
    for side in SIDES:
        with pair.use(side) as model, torch.inference_mode():
            model.net(input_ids=torch.ones(1, 8, dtype=torch.long))
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory counts from here
        before, began = held("VmRSS"), time.process_time()
        numbers = scan(pair, corpus) if what == "scan" else loop(pair, said, batch)
        seconds = time.process_time() - began
    tokens = sum(len(pair.tokenizer("base")(text)["input_ids"]) for text in said)
    return {"seconds": seconds, "memory": held("VmHWM") - before, "models": before, "tokens": tokens, "numbers": numbers}


def line(what: str, n: int, batch: int = 0) -> dict[str, Any]:
    asked = [sys.executable, __file__, "--child", what, "--texts", str(n), "--batches", str(batch)]
    told: dict[str, Any] = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return told


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--texts", type=int, default=2000)
    asked.add_argument("--sizes", type=int, nargs="*", default=[500])
    asked.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    asked.add_argument("--child")
    given = asked.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.texts, given.batches[0])))
        return
    print(
        "| what | texts | tokens | CPU s | memory beyond the models, MiB | largest difference of a text's number |\n|---|---|---|---|---|---|"
    )
    own = line("scan", given.texts)
    lines = [("**scan**", given.texts, own)]
    lines += [(f"loop, batch {batch}", given.texts, line("loop", given.texts, batch)) for batch in given.batches]
    lines += [("scan", n, line("scan", n)) for n in given.sizes]
    for name, n, told in lines:
        pairs = zip(told["numbers"], own["numbers"], strict=False)
        apart = max(abs(one - other) for row, ours in pairs for one, other in zip(row[:4], ours[:4], strict=True))
        print(f"| {name} | {n:,} | {told['tokens']:,} | {told['seconds']:.1f} | {told['memory']:,.0f} | {apart:.0e} |", flush=True)
    fastest = min((told for name, _, told in lines if name.startswith("loop")), key=lambda told: told["seconds"])
    times, memory = (fastest[what] / own[what] for what in ("seconds", "memory"))
    print(f"\nThe fastest loop takes {times:.2f} times as long as the scan, and {memory:.1f} times the memory.")


if __name__ == "__main__":
    main()
