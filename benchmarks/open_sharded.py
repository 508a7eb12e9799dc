"""How much memory does it take to compare the weights of a sharded checkpoint of 2 GB? Of two builds, side by side.

python benchmarks/open_sharded.py eb816a0 .        two commits; a dot is the working tree as it stands
python benchmarks/open_sharded.py eb816a0 . --gb 0.5

A Llama in bfloat16 is written in 8 shards (random numbers, in code), and each build streams base and tuned as the measure `weights` does:
every tensor of both, squared changes summed. The two folders differ in one norm. It prints the largest memory of each process (as the system
counts it, pages of mapped files included), and exits 1 where the second build takes more than 1.2 times that of the first.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from same_rows import source

SHARDS = 8
LIMIT = 1.2
D, D_MLP, VOCAB = 2048, 5632, 32000
RUN = """
import importlib, resource, sys, time
from pathlib import Path
import mechdiff
assert mechdiff.__file__.startswith(sys.argv[1]), mechdiff.__file__
home = "mechdiff.models" if (Path(sys.argv[1]) / "mechdiff" / "models").is_dir() else "mechdiff.engine"
resolve = importlib.import_module(f"{home}.sources").resolve
open_changes = importlib.import_module(f"{home}.changes").open_changes
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start, moved, n = time.process_time(), 0.0, 0
for change in open_changes(resolve(sys.argv[2]), resolve(sys.argv[3])):
    moved += change.squared_change()
    n += 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, before, time.process_time() - start, n, moved)
"""


def names(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, and its shape."""
    block = {
        "self_attn.q_proj": (D, D), "self_attn.k_proj": (D // 4, D), "self_attn.v_proj": (D // 4, D), "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (D_MLP, D), "mlp.up_proj": (D_MLP, D), "mlp.down_proj": (D, D_MLP), "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, D)}
    found |= {f"model.layers.{layer}.{name}.weight": shape for layer in range(n_layers) for name, shape in block.items()}
    return {**found, "model.norm.weight": (D,), "lm_head.weight": (VOCAB, D)}


def write(place: Path, gigabytes: float) -> tuple[Path, Path]:
    """Base and tuned: the same shards, but for the last, in which one norm differs."""
    per_block = 2 * (2.5 * D * D + 3 * D * D_MLP)
    tensors = names(max(1, round((gigabytes * 1e9 - 4 * VOCAB * D) / per_block)))
    shard = {name: f"model-{i * SHARDS // len(tensors) + 1:05}-of-{SHARDS:05}.safetensors" for i, name in enumerate(tensors)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D, "tie_word_embeddings": False}
    folders = place / "base", place / "tuned"
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard}))
    for file in sorted(set(shard.values())):
        torch.manual_seed(int(file[6:11]))
        held = {name: torch.randn(shape, dtype=torch.bfloat16) * 0.02 for name, shape in tensors.items() if shard[name] == file}
        save_file(held, folders[0] / file, metadata={"format": "pt"})
        if "model.norm.weight" in held:
            held["model.norm.weight"] = held["model.norm.weight"] + 1
            save_file(held, folders[1] / file, metadata={"format": "pt"})
        else:
            os.link(folders[0] / file, folders[1] / file)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the checkpoint")
    given = parser.parse_args()
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        base, tuned = write(place, given.gb)
        size = sum(path.stat().st_size for path in base.iterdir())
        print(
            f"| build | checkpoint, GB | largest memory, MB | of it before any file, MB | CPU, s | tensors | squared change |\n{'|---' * 7}|"
        )
        peak = {}
        for i, commit in enumerate((given.old, given.new)):
            (place / str(i)).mkdir()
            src = source(commit, place / str(i))
            env = {**os.environ, "PYTHONPATH": str(src), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-c", RUN, str(src), str(base), str(tuned)], env=env, check=True, capture_output=True, text=True
            )
            most, before, seconds, n, moved = done.stdout.split()
            peak[i] = int(most)
            print(
                f"| {commit} | {size / 1e9:.2f} | {int(most) / 1024:.0f} | {int(before) / 1024:.0f} | {float(seconds):.1f} | {n} | {moved} |"
            )
    ratio = peak[1] / peak[0]
    print(f"\n{ratio:.2f} times the memory (at most {LIMIT}).")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
