"""How many operations does a replayed pass with its outcome send to a device, and how often does the host wait? Of two builds, by one counter.

python benchmarks/operations.py eb816a0 .        two commits; a dot is the working tree as it stands

A random Llama of 30 blocks with the widths of a toy and the vocabulary of a real model reads 8 prompts; 30 blocks x 3 kinds of site are written, in
passes of at most 512 rows, all metrics of the outcome. Counted by a dispatch mode (tests/dispatched.py), views left out. `device`: tables of
the outcome as large as on a GPU; `cpu`: as small as fits a CPU's cache. `toggled`: with a LoRA adapter of every matrix on, not merged.
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from same_rows import source

CHILD = """
import importlib, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from dispatched import counted
from transformers import LlamaConfig, LlamaForCausalLM
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import replay
new = (Path(sys.argv[1]) / "mechdiff" / "models").is_dir()
if new:
    from mechdiff.architectures.sites import Site
    from mechdiff.engine import distributions as outcome
    from mechdiff.engine.outcome import CleanLogits
    from mechdiff.engine.counterfactuals import Subject, scores
    from mechdiff.measures.patching.formula import variants
    from mechdiff.models.pair import wrap
else:
    from mechdiff.engine.models import wrap
    from mechdiff.engine.sites import Site
    from mechdiff.measures import outcome
    from mechdiff.measures.counterfactuals import scores
    from mechdiff.measures.patching import variants
if sys.argv[4] == "device":
    outcome._BLOCK_ELEMENTS["cpu"] = outcome._BLOCK_ELEMENTS["cuda"]

class AllShared:
    n_shared = None
    def place(self, logits, side):
        return logits

torch.manual_seed(0)
sizes = dict(hidden_size=36, intermediate_size=96, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152)
net = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=4)).eval().requires_grad_(False)
if sys.argv[3] == "toggled":
    from peft import LoraConfig, get_peft_model
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    net = get_peft_model(net, LoraConfig(target_modules=every)).eval().requires_grad_(False).get_base_model()
model = wrap(net, side="tuned", ref="llama")
kinds = ("resid_post", "attn_out", "mlp_out")
ids = [torch.randint(0, 49152, (n,)).tolist() for n in (20, 21, 25, 29, 34, 38, 46, 66)]
cleans = [capture(model, one, [Site(layer, kind) for layer in range(30) for kind in kinds], [len(one) - 1], keep_cache=True) for one in ids]
chosen = [one for kind in kinds
          for one in variants(kind, range(30), torch.stack([torch.stack([c.states[Site(l, kind)] + 1 for c in cleans]) for l in range(30)]))]
own = torch.stack([c.logits for c in cleans])
other = own + torch.randn_like(own)

def work():
    if new:
        subject = Subject(model=model, engine=replay, cleans=cleans, tokens=AllShared())
        return scores(subject, chosen, clean, max_rows=512)
    return scores(model, replay, cleans, chosen, base_logits=other, tuned_logits=own, tokens=AllShared(), max_rows=512)

if new:
    clean = CleanLogits(base=other, tuned=own)
passes = -(-len(chosen) // (512 // len(cleans) - 1))
work()
sent, waits = counted(work)
print(json.dumps([sum(sent.values()) / passes, sum(waits.values()) / passes, sent.most_common(12), waits.most_common(6)]))
"""


def main() -> None:
    """Print a line a build."""
    tests = str(Path(__file__).parents[1] / "tests")
    for way, tiles in product(("merged", "toggled"), ("device", "cpu")):
        for build in sys.argv[1:]:
            with TemporaryDirectory() as place:
                src = source(build, Path(place))
                env = os.environ | {"PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", CHILD, str(src), tests, way, tiles],
                    env=env,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                print(way, tiles, build, done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
