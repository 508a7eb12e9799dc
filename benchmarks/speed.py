"""The same patching cells by replay, by plain hooked forward passes, by TransformerLens and by nnsight, side by side in one process.

    make bench        # a virtual environment of its own with the peers in it; writes docs/SPEED.md

A cell is one counterfactual run: the base's state written at one site of the tuned model, at the last token, and the KL of the next-token law against
the clean one. Base: SmolLM2-135M-Instruct. Tuned: the embedded adapter, merged, so that every tool loads the same plain model. Peers run fewer cells
(a cell costs them a whole forward pass); every figure is milliseconds a cell, the best of several repetitions, taken in turns.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from mechdiff.demo import DATA, embedded_model
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.models import Model, open_pair
from mechdiff.engine.replay import full, replay
from mechdiff.engine.sites import Site
from mechdiff.measures.outcome import kl_nats
from mechdiff.measures.patching import variants

KINDS = ("resid_post", "attn_out", "mlp_out")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A pair on one tuned model, eight prompts, and the base's states on them."""

    tuned: Model
    folder: Path
    cleans: list[Clean]
    states: dict[Site, list[Tensor]]

    @property
    def n_layers(self) -> int:
        return self.tuned.shape.n_layers


def prepare(n_prompts: int, dtype: str, folder: Path) -> Bench:
    """Merged tuned model on disk and in memory, and both models' clean passes."""
    pair = open_pair(str(embedded_model()), str(DATA / "adapters" / "courtesy"), dtype=dtype)
    tokenizer = pair.tokenizer("tuned")
    texts = [json.loads(line)["text"] for name in ("arithmetic", "kazakh") for line in (DATA / "prompts" / f"{name}_report.jsonl").open()]
    rendered = [tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, tokenize=False) for t in texts]
    ids = sorted((tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered), key=len)
    ids = [one for one in ids if 60 <= len(one) <= 200]
    ids = [ids[i * (len(ids) - 1) // (n_prompts - 1)] for i in range(n_prompts)]
    sites = [Site(layer, kind) for layer in range(30) for kind in KINDS]
    with pair.use("base") as base:
        captured = [capture(base, one, sites, [len(one) - 1]) for one in ids]
    with pair.use("tuned"):
        merged = pair._adapted.merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain = open_pair(str(folder), str(folder), dtype=dtype)
    with plain.use("tuned") as tuned:
        cleans = [capture(tuned, one, [], [0], keep_cache=True) for one in ids]
    return Bench(tuned=tuned, folder=folder, cleans=cleans, states={site: [c.states[site] for c in captured] for site in sites})


def written(bench: Bench, kind: str, prompts: list[int]) -> Tensor:
    return torch.stack([torch.stack([bench.states[Site(layer, kind)][i] for i in prompts]) for layer in range(bench.n_layers)])


# ---- the contestants: each gives KLs `[prompt, cell]` of the first `len(prompts)` prompts at `kinds`


def by_replay(bench: Bench, prompts: list[int], kinds: tuple[str, ...], *, together: bool = True) -> Tensor:
    cleans = [bench.cleans[i] for i in prompts]
    per_kind = [variants(kind, range(bench.n_layers), written(bench, kind, prompts)) for kind in kinds]
    passes = [[v for chosen in per_kind for v in chosen]] if together else per_kind
    own = torch.stack([clean.logits for clean in cleans])[:, None]
    return torch.cat([kl_nats(own, replay(bench.tuned, cleans, chosen)[:, 1:]) for chosen in passes], 1)


def by_hooks(bench: Bench, prompts: list[int], kinds: tuple[str, ...]) -> Tensor:
    found = []
    for i in prompts:
        clean = bench.cleans[i]
        chosen = [v for kind in kinds for v in variants(kind, range(bench.n_layers), written(bench, kind, [i]))]
        found.append(kl_nats(clean.logits, full(bench.tuned, [clean], chosen)[0, 1:]))
    return torch.stack(found)


def by_transformer_lens(bench: Bench, prompts: list[int], kinds: tuple[str, ...]) -> Tensor:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    names = {"resid_post": "blocks.{}.hook_out", "attn_out": "blocks.{}.attn.hook_out", "mlp_out": "blocks.{}.mlp.hook_out"}
    bridge = TransformerBridge.boot_transformers(
        str(bench.folder), hf_model=bench.tuned.net, tokenizer=AutoTokenizer.from_pretrained(bench.folder), device="cpu"
    )
    bridge.eval()
    found: list[Tensor] = []

    def run() -> Tensor:
        found.clear()
        with torch.inference_mode():
            for i in prompts:
                for kind in kinds:
                    for layer in range(bench.n_layers):
                        state = bench.states[Site(layer, kind)][i]

                        def write(activation: Tensor, hook: object, state: Tensor = state) -> Tensor:
                            activation[:, -1:] = state
                            return activation

                        logits = bridge.run_with_hooks(bench.cleans[i].ids[None], fwd_hooks=[(names[kind].format(layer), write)])
                        found.append(kl_nats(bench.cleans[i].logits, logits[0, -1]))
        return torch.stack(found).reshape(len(prompts), -1)

    by_transformer_lens.run = run  # type: ignore[attr-defined]
    return run()


def by_nnsight(bench: Bench, prompts: list[int], kinds: tuple[str, ...]) -> Tensor:
    from nnsight import LanguageModel
    from transformers import AutoTokenizer

    lens = LanguageModel(bench.tuned.net, tokenizer=AutoTokenizer.from_pretrained(bench.folder))
    found = []
    with torch.inference_mode():
        for i in prompts:
            ids = bench.cleans[i].ids[None]
            for kind in kinds:
                for layer in range(bench.n_layers):
                    state = bench.states[Site(layer, kind)][i]
                    with lens.trace(ids):
                        block = lens.model.layers[layer]
                        if kind == "resid_post":
                            block.output[:, -1:] = state
                        elif kind == "mlp_out":
                            block.mlp.output[:, -1:] = state
                        else:
                            block.self_attn.output[0][:, -1:] = state
                        logits = lens.lm_head.output[:, -1].save()
                    found.append(kl_nats(bench.cleans[i].logits, logits[0]))
    return torch.stack(found).reshape(len(prompts), -1)


# ---- measuring


def timed(work: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Best seconds of `repeats`, and the result."""
    best, result = float("inf"), torch.empty(0)
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return best, result


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of products of the model's own sizes: 480 rows through an MLP matrix and the unembedding."""
    rows, up, head = torch.randn(480, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype), torch.randn(576, 49152, dtype=dtype)
    rates = []
    for matrix in (up, head):
        seconds, _ = timed(lambda matrix=matrix: rows @ matrix, 7)
        rates.append(2 * 480 * matrix.numel() / seconds)
    return statistics.mean(rates)


def flops_a_cell(bench: Bench) -> float:
    """Multiplications and additions that replay must do for one cell: half the blocks on average, and the whole unembedding."""
    shape = bench.tuned.shape
    head = shape.vocab * shape.d_model
    return 2 * ((shape.parameters - head) * (shape.n_layers + 1) / (2 * shape.n_layers) + head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--peer-prompts", type=int, default=1, help="prompts that the peers run (a whole forward pass for each cell)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--no-peers", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        report(prepare(asked.prompts, asked.dtype, Path(folder)), asked)


def report(bench: Bench, asked: argparse.Namespace) -> None:
    everyone, few = (
        list(range(asked.prompts)),
        list(range(0, asked.prompts, max(1, asked.prompts // asked.peer_prompts)))[: asked.peer_prompts],
    )
    lengths = [len(clean.ids) for clean in bench.cleans]
    print(
        f"# {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers {version('transformers')}, {asked.dtype}"
    )
    print(f"prompts of {lengths} tokens; {bench.n_layers} blocks x {len(KINDS)} sites\n")
    rate = matrix_rate(bench.tuned.dtype)
    contestants: dict[str, tuple[Callable[[], Tensor], list[int]]] = {
        "replay, 90 variants a prompt": (lambda: by_replay(bench, everyone, KINDS), everyone),
        "replay, 30 variants a prompt": (lambda: by_replay(bench, everyone, KINDS, together=False), everyone),
        "plain hooks, a full forward a cell": (lambda: by_hooks(bench, few, KINDS), few),
    }
    if not asked.no_peers:
        contestants[f"TransformerLens {version('transformer-lens')}"] = (lambda: by_transformer_lens(bench, few, KINDS), few)
        contestants[f"nnsight {version('nnsight')}"] = (lambda: by_nnsight(bench, few, KINDS), few)
    found = {}
    for _ in range(asked.repeats):
        for name, (work, prompts) in contestants.items():
            if name in found and not name.startswith(("replay", "plain")):
                continue  # one round of the slow ones
            seconds, kls = timed(work, 1)
            if name not in found or seconds < found[name][0]:
                found[name] = (seconds, kls, prompts)
    oracle = found["plain hooks, a full forward a cell"][1]
    fastest = min(seconds / kls.numel() for name, (seconds, kls, _) in found.items() if not name.startswith("replay"))
    print("| tool | cells | ms a cell | times the best other | largest difference of KL from plain hooks, nats |\n|---|---|---|---|---|")
    for name, (seconds, kls, prompts) in found.items():
        shared = kls[[prompts.index(i) for i in few]] if len(prompts) > len(few) else kls
        cost, apart = seconds / kls.numel(), float((shared - oracle).abs().max())
        print(f"| {name} | {kls.numel()} | {cost * 1e3:.2f} | {fastest / cost:.1f} | {apart:.1e} |")
    best = min(seconds / kls.numel() for name, (seconds, kls, _) in found.items() if name.startswith("replay"))
    print(f"\nmatrix rate of the machine {rate / 1e9:.0f} GFLOP/s; replay reaches {flops_a_cell(bench) / best / 1e9:.0f} GFLOP/s, ", end="")
    print(f"{flops_a_cell(bench) / best / rate:.0%} of it ({flops_a_cell(bench) / 1e9:.3f} GFLOP a cell)\n")
    growth(bench)


def growth(bench: Bench) -> None:
    """How the cost of a cell moves with variants, prompts, blocks and prompt length."""
    print("| what grows | value | ms a cell |\n|---|---|---|")
    kinds_of = {30: KINDS[:1], 60: KINDS[:2], 90: KINDS}
    for n, kinds in kinds_of.items():
        seconds, kls = timed(lambda kinds=kinds: by_replay(bench, list(range(4)), kinds), 3)
        print(f"| variants a prompt (4 prompts) | {n} | {seconds / kls.numel() * 1e3:.2f} |")
    for n in (1, 2, 4, 8):
        if n <= len(bench.cleans):
            seconds, kls = timed(lambda n=n: by_replay(bench, list(range(n)), KINDS[:1]), 3)
            print(f"| prompts in a pass (30 variants) | {n} | {seconds / kls.numel() * 1e3:.2f} |")
    for i in (0, len(bench.cleans) // 2, len(bench.cleans) - 1):
        seconds, kls = timed(lambda i=i: by_replay(bench, [i], KINDS), 3)
        print(f"| tokens of the prompt (90 variants) | {len(bench.cleans[i].ids)} | {seconds / kls.numel() * 1e3:.2f} |")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
