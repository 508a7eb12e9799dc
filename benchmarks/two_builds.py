"""What the engine costs in two builds, in turn: CPU seconds of one thread, medians and ratios, and the largest memory of each.

python benchmarks/two_builds.py eb816a0 .                two commits; a dot is the working tree as it stands
python benchmarks/two_builds.py eb816a0 . --turns 6 --only scores,selfcheck

Each build is a process of its own that has loaded SmolLM2-135M with an embedded adapter; they are asked in turn, so that a busy machine slows both.

- `scores`: 720 counterfactual runs (8 prompts of 60 to 199 tokens, 30 blocks x 3 kinds of site) with every metric, the adapter on;
- `merged`: the same with the adapter merged into the weights; `narrow`: of 5 prompts and one kind of site at a time;
- `selfcheck`: of the base, the kinds that the embedded studies capture; `capture`: 16 prompts, every site of those kinds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from same_rows import source

WORKS = ("scores", "merged", "narrow", "selfcheck", "capture")
CHILD = """
import copy, json, sys, time
from pathlib import Path
import torch
import mechdiff
assert mechdiff.__file__.startswith(sys.argv[1]), mechdiff.__file__
torch.set_num_threads(1)
from mechdiff.demo import DATA, embedded_model
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import replay
from mechdiff.engine.selfcheck import self_check
if (Path(sys.argv[1]) / "mechdiff" / "models").is_dir():
    from mechdiff.architectures.sites import Site
    from mechdiff.engine.counterfactuals import Subject, scores
    try:
        from mechdiff.engine.outcome import CleanLogits
    except ImportError:
        from mechdiff.engine.distributions import CleanLogits
    from mechdiff.measures.patching.formula import variants
    from mechdiff.models.pair import open_pair, wrap
else:
    from mechdiff.engine.models import open_pair, wrap
    from mechdiff.engine.sites import Site
    from mechdiff.measures.counterfactuals import scores
    from mechdiff.measures.patching import variants
    CleanLogits = None

KINDS = ("resid_post", "attn_out", "mlp_out")
STUDIED = ("z", "attn_out", "resid_mid", "mlp_out", "resid_post")
pair = open_pair(str(embedded_model()), str(DATA / "adapters" / "kazakh"), dtype="float32", device="cpu")
tokenizer = pair.tokenizer("tuned")
files = [DATA / "prompts" / f"{name}_{split}.jsonl" for name in ("arithmetic", "kazakh") for split in ("fit", "report")]
single = [json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines()]
texts = [" ".join(single[i : i + n]) for n in (1, 2, 3, 4) for i in range(0, len(single) - n, n)]
rendered = [tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, tokenize=False) for t in texts]
every = sorted((tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered), key=len)
every = [one for one in every if 60 <= len(one) <= 200]
ids = [every[i * (len(every) - 1) // 7] for i in range(8)]
sites = [Site(layer, kind) for layer in range(30) for kind in KINDS]
with pair.use("base") as base:
    captured = [capture(base, one, sites, [len(one) - 1]) for one in ids]
with pair.use("tuned") as model:
    cleans = [capture(model, one, [], [0], keep_cache=True) for one in ids]
logits = {"base": torch.stack([one.logits for one in captured]), "tuned": torch.stack([one.logits for one in cleans])}
merged = None

def chosen(kinds, prompts):
    written = {kind: torch.stack([torch.stack([captured[i].states[Site(layer, kind)] for i in prompts]) for layer in range(30)]) for kind in kinds}
    return [one for kind in kinds for one in variants(kind, range(30), written[kind])]

def scored(model, cleans, kinds, prompts):
    at = {side: values[prompts] for side, values in logits.items()}
    if CleanLogits:
        subject = Subject(model=model, engine=replay, cleans=[cleans[i] for i in prompts], tokens=AllShared())
        return scores(subject, chosen(kinds, prompts), CleanLogits(**at), max_rows=512)
    clean = {f"{side}_logits": values for side, values in at.items()}
    return scores(model, replay, [cleans[i] for i in prompts], chosen(kinds, prompts), tokens=AllShared(), max_rows=512, **clean)

class AllShared:
    n_shared = None
    def place(self, logits, side):
        return logits

def merged_model():
    global merged
    if merged is None:
        with pair.use("tuned") as model:
            net = copy.deepcopy(pair._adapted).merge_and_unload()
        plain = wrap(net, side="tuned", ref="merged")
        merged = plain, [capture(plain, one, [], [0], keep_cache=True) for one in ids]
    return merged

def scores_(): 
    with pair.use("tuned") as model:
        scored(model, cleans, KINDS, list(range(8)))

def merged_():
    scored(*merged_model(), KINDS, list(range(8)))

def narrow_():
    with pair.use("tuned") as model:
        for kind in KINDS:
            scored(model, cleans, [kind], list(range(5)))

def selfcheck_():
    with pair.use("base") as model:
        self_check(model, every[:16], kinds=STUDIED)

def capture_():
    with pair.use("base") as model:
        for one in every[::max(1, len(every) // 16)][:16]:
            capture(model, one, [Site(layer, kind) for layer in range(30) for kind in STUDIED], [len(one) - 1])

try:
    from mechdiff.engine.reading import captures
except ImportError:
    pass
else:
    def capture_():
        chosen = every[::max(1, len(every) // 16)][:16]
        with pair.use("base") as model:
            captures(model, chosen, [Site(layer, kind) for layer in range(30) for kind in STUDIED], [[len(one) - 1] for one in chosen])

for line in sys.stdin:
    work = globals()[line.strip() + "_"]
    if line.strip() == "merged":
        merged_model()
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory counts from here
    start = time.process_time()
    work()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps([time.process_time() - start, int(status["VmHWM"].split()[0])]), flush=True)
"""


def main() -> None:
    """Print one line a work: both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default=",".join(WORKS))
    chosen = parser.parse_args()
    with ExitStack() as stack:
        children = []
        for build in chosen.builds:
            src = source(build, Path(stack.enter_context(TemporaryDirectory())))
            env = os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            child = [sys.executable, "-W", "ignore", "-c", CHILD, str(src)]
            children.append(subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env))
        for work in chosen.only.split(","):
            times: list[list[float]] = [[], []]
            memory = [0.0, 0.0]
            for turn in range(chosen.turns + 1):
                for which, child in enumerate(children):
                    assert child.stdin
                    assert child.stdout
                    child.stdin.write(work + "\n")
                    child.stdin.flush()
                    seconds, memory[which] = json.loads(child.stdout.readline())
                    if turn:  # the first warms up
                        times[which].append(seconds)
            old, new = (statistics.median(each) for each in times)
            pairs = ", ".join(f"{a / b:.2f}" for a, b in zip(*times, strict=True))
            said = f"| {work} | {old:.2f} | {new:.2f} | {old / new:.2f} | {pairs} | {memory[0] / 1024:.0f} | {memory[1] / 1024:.0f} |"
            print(said, flush=True)
        for child in children:
            assert child.stdin
            child.stdin.close()


if __name__ == "__main__":
    main()
