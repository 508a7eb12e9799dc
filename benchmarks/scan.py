"""A scan beside two plain batched forward loops: how fast, and in how much memory?

python benchmarks/scan.py [--texts 2000] [--held 500 2000] [--batches 1 4 16 64]      a table in Markdown, for docs/SPEED.md

The embedded arithmetic pair (an adapter on every matrix of SmolLM2-135M) reads texts of 32 to 256 tokens, made of shipped ones. The loop does what
one would write: batches in the order of the corpus, padded on the right, whole logits of base and tuned, log-softmaxes, KL both ways, both losses
and top-1 agreement a token, means a text. The scan computes the same, with its counts, and no directions. The numbers of both must agree.

Time is CPU seconds of one thread, of reading alone: one process takes the texts by slices, and of each slice every contender has its turn, each
time another first, so that a busy moment meets all. Memory is the most that a process held beyond what it did with both models loaded, a process
for each line.
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


def opened() -> Pair:
    """The pair, both of whose models have run before."""
    torch.set_num_threads(1)
    pair = open_pair(str(embedded_model()), str(DATA / "adapters" / "arithmetic"), device="cpu")
    for side in SIDES:
        with pair.use(side) as model, torch.inference_mode():
            model.net(input_ids=torch.ones(1, 8, dtype=torch.long))
    return pair


def corpus(folder: str, said: list[str]) -> Path:
    """A file of these texts."""
    path = Path(folder) / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    return path


def child_times(n: int, at_once: int, batches: list[int]) -> dict[str, Any]:
    """CPU seconds of the scan ("0") and of the loop by its batch, slice by slice; and how far apart a text's numbers are at most."""
    pair = opened()
    said = list(texts(pair, n))
    seconds, apart, tokens = dict.fromkeys([0, *batches], 0.0), 0.0, 0
    for number, start in enumerate(range(0, n, at_once)):
        here = said[start : start + at_once]
        tokens += sum(len(pair.tokenizer("base")(text)["input_ids"]) for text in here)
        found = {}
        turns = list(seconds)
        for batch in turns[number % len(turns) :] + turns[: number % len(turns)]:
            with tempfile.TemporaryDirectory() as folder:
                path, began = corpus(folder, here), time.process_time()
                found[batch] = loop(pair, here, batch) if batch else scan(pair, path)
                seconds[batch] += time.process_time() - began
        for batch in batches:
            rows = zip(found[batch], found[0], strict=True)
            apart = max([apart, *(abs(x - y) for row, ours in rows for x, y in zip(row[:4], ours[:4], strict=True))])
        print({name: round(value, 1) for name, value in seconds.items()}, file=sys.stderr, flush=True)
    return {"seconds": seconds, "apart": apart, "tokens": tokens}


def child_memory(n: int, batch: int) -> float:
    """MiB beyond the models: of the scan (0), or of the loop with this batch."""
    pair = opened()
    said = list(texts(pair, n))
    with tempfile.TemporaryDirectory() as folder:
        path = corpus(folder, said)
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory counts from here
        before = held("VmRSS")
        if batch:
            loop(pair, said, batch)
        else:
            scan(pair, path)
        return held("VmHWM") - before


def asked_of(*what: object) -> Any:
    done = subprocess.run([sys.executable, __file__, *map(str, what)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--texts", type=int, default=2000)
    asked.add_argument("--slice", type=int, default=100, help="texts between two turns")
    asked.add_argument(
        "--held", type=int, nargs="*", default=[500, 2000], help="texts of the scans whose memory is held against one another"
    )
    asked.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    asked.add_argument("--child", choices=["times", "memory"])
    given = asked.parse_args()
    if given.child:
        times = given.child == "times"
        print(json.dumps(child_times(given.texts, given.slice, given.batches) if times else child_memory(given.texts, given.batches[0])))
        return
    told = asked_of("--child", "times", "--texts", given.texts, "--slice", given.slice, "--batches", *given.batches)
    seconds = {int(batch): value for batch, value in told["seconds"].items()}
    memory = {batch: asked_of("--child", "memory", "--texts", min(given.texts, 128), "--batches", batch) for batch in seconds}
    print(f"{given.texts:,} texts, {told['tokens']:,} tokens; a text's numbers are at most {told['apart']:.0e} apart.\n")
    print("| what | CPU s | memory beyond the models, MiB |\n|---|---|---|")
    for batch, value in seconds.items():
        print(f"| {f'loop, batch {batch}' if batch else '**scan**'} | {value:.1f} | {memory[batch]:,.0f} |")
    fastest = min(given.batches, key=lambda batch: seconds[batch])
    time_ratio, memory_ratio = seconds[fastest] / seconds[0], memory[fastest] / memory[0]
    print(f"\nThe fastest loop takes {time_ratio:.2f} times as long as the scan, and {memory_ratio:.1f} times the memory.")
    for n in given.held:
        print(f"A scan of {n:,} texts holds {asked_of('--child', 'memory', '--texts', n, '--batches', 0):,.0f} MiB beyond the models.")


if __name__ == "__main__":
    main()
