"""How much faster do many seeds go on side by side than one `generate` a seed? The embedded model, the openings that `words` goes on with.

    python benchmarks/voices.py [SEEDS] [TOKENS]

Both draw at the same temperature; neither ends before TOKENS tokens. One run of each warms up; then each is timed in turn, and the medians are held
against each other. On a machine that others use too, CPU seconds are what counts: both are printed.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch

from mechdiff.demo import embedded_model
from mechdiff.engine.generation import Sampling, Speech, speak
from mechdiff.engine.replay import replay
from mechdiff.measures.words.plan import openings
from mechdiff.models.pair import open_pair

REPEATS = 2


def timed(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    n, tokens = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 48), (2, 48)))
    pair = open_pair(str(embedded_model()), str(embedded_model()), device="cpu")
    tokenizer = pair.tokenizer("base")
    asked = [tokenizer(text).input_ids for _, text in openings(n)]
    with pair.use("base") as model, torch.inference_mode():
        net, end = model.net, tokenizer.eos_token_id

        def one_by_one() -> None:
            torch.manual_seed(0)
            for ids in asked:
                net.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=True, temperature=0.7, top_p=0.95,
                    max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=end,
                )  # fmt: skip

        def together() -> None:
            speak(model, replay, asked, Speech(max_tokens=tokens, stop=(), sampling=Sampling(temperature=0.7, top_p=0.95)))

        found: dict[str, list[tuple[float, float]]] = {"one generate a seed": [], "side by side": []}
        for number in range(1 + REPEATS):
            for name, run in zip(found, (one_by_one, together), strict=True):
                told = timed(run)
                if number:
                    found[name].append(told)
                print(f"{name}: {told[0]:.1f} s, {told[1]:.1f} CPU seconds{'' if number else ' (warming up)'}", flush=True)
    (slow, slow_cpu), (fast, fast_cpu) = (tuple(statistics.median(one[i] for one in times) for i in (0, 1)) for times in found.values())
    print(
        f"{n} seeds, {tokens} tokens, {torch.get_num_threads()} thread(s): {slow / fast:.1f} times as fast ({slow_cpu / fast_cpu:.1f} in CPU seconds)"
    )


if __name__ == "__main__":
    main()
