"""What proposing and proving a row costs beside the self-check of a listed family: the same network, once by its listed row and once by the row that
is proposed from it. CPU seconds, medians of five pairs in turn.

    python benchmarks/proposing.py [FOLDER]     default: the embedded SmolLM2-135M
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mechdiff.architectures.network import network_of
from mechdiff.architectures.proposal import propose
from mechdiff.demo import embedded_model
from mechdiff.engine.selfcheck import self_check
from mechdiff.models.modules import parts
from mechdiff.models.pair import load_net, wrap
from mechdiff.models.sources import load_tokenizer, resolve

PAIRS = 5
TEXTS = ("The quick brown fox jumps over the lazy dog.", "How many legs do two spiders and a dog have together? Count them one by one.")


def seconds(work: Any) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print both medians and their ratio."""
    torch.set_num_threads(1)
    source = resolve(sys.argv[1] if len(sys.argv) > 1 else str(embedded_model()))
    tokenizer = load_tokenizer(source)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    listed = wrap(load_net(source, dtype="float32", device=torch.device("cpu")), side="base", ref=source.ref)
    config, timed = listed.config, dict[str, list[float]](listed=[], proposed=[])

    def proved() -> None:
        model = replace(listed, family=propose(network_of(config), config))
        parts(model)
        self_check(model, prompts)

    for _ in range(PAIRS):
        timed["listed"].append(seconds(lambda: self_check(listed, prompts)))
        timed["proposed"].append(seconds(proved))
    own, with_row = (statistics.median(timed[name]) for name in ("listed", "proposed"))
    said = f"self-check of a listed row {own:.1f} s of CPU, a row proposed and proved {with_row:.1f} s: {with_row / own:.2f} times"
    print(f"{Path(source.ref).name}: {said}")


if __name__ == "__main__":
    main()
