"""How long one counterfactual run takes: mechdiff's replay, plain hooked forward passes, TransformerLens and nnsight, side by side in one run.

    make bench        about ten minutes on two cores; writes docs/SPEED.md

A cell is one counterfactual run: the base's state written at one site of the tuned model, at the last token, and the KL of the next-token law
against the clean one. Base: SmolLM2-135M-Instruct. Tuned: the embedded adapter, merged, so that every tool runs the same plain network on the
same token ids. Every tool computes the same cells; those for which a cell is a whole forward pass run fewer prompts. They take turns, and
each figure is the best of its turns: on a shared machine the slower ones measure the neighbours.
"""

import argparse
import copy
import ctypes
import gc
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.demo import DATA, embedded_model
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import full, replay
from mechdiff.measures.patching.formula import variants
from mechdiff.models.pair import Model, open_pair, wrap

KINDS = ("resid_post", "attn_out", "mlp_out")
OUT = Path(__file__).parents[1] / "docs" / "SPEED.md"
LOADS = "## Loads of a model"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A tuned model, prompts, and the base's states on them."""

    tuned: Model
    tokenizer: object
    folder: Path
    cleans: list[Clean]
    states: dict[Site, list[Tensor]]
    """Site -> by prompt, `[1, d]`"""

    @property
    def layers(self) -> range:
        return range(self.tuned.shape.n_layers)

    def written(self, kind: str, prompts: Sequence[int]) -> Tensor:
        return torch.stack([torch.stack([self.states[Site(layer, kind)][i] for i in prompts]) for layer in self.layers])

    def cells(self, kinds: Sequence[str]) -> list[Site]:
        return [Site(layer, kind) for kind in kinds for layer in self.layers]


def prepare(n_prompts: int, dtype: str, folder: Path, device: str = "auto") -> Bench:
    """The merged tuned model on disk and in memory, and both models' clean passes of prompts of 60 to 200 tokens."""
    pair = open_pair(str(embedded_model()), str(DATA / "adapters" / "courtesy"), dtype=dtype, device=device)
    tokenizer = pair.tokenizer("tuned")
    files = [DATA / "prompts" / f"{name}_{split}.jsonl" for name in ("arithmetic", "kazakh") for split in ("fit", "report")]
    single = [json.loads(line)["text"] for file in files for line in file.read_text("utf-8").splitlines()]
    texts = [" ".join(single[i : i + n]) for n in (1, 2, 3, 4) for i in range(0, len(single) - n, n)]  # one to four questions in a prompt
    rendered = [tokenizer.apply_chat_template([{"role": "user", "content": t}], add_generation_prompt=True, tokenize=False) for t in texts]
    ids = sorted((tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered), key=len)
    ids = [one for one in ids if 60 <= len(one) <= 200]
    ids = [ids[i * (len(ids) - 1) // (n_prompts - 1)] for i in range(n_prompts)]
    sites = [Site(layer, kind) for layer in range(30) for kind in KINDS]
    with pair.use("base") as base:
        captured = [capture(base, one, sites, [len(one) - 1]) for one in ids]
    with pair.use("tuned"):
        merged = copy.deepcopy(pair._adapted).merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    plain = open_pair(str(folder), str(folder), dtype=dtype, device=device)
    with plain.use("tuned") as tuned:
        cleans = [capture(tuned, one, [], [0], keep_cache=True) for one in ids]
    states = {site: [clean.states[site] for clean in captured] for site in sites}
    return Bench(tuned=tuned, tokenizer=plain.tokenizer("tuned"), folder=folder, cleans=cleans, states=states)


# ---- the contestants: each gives the KLs `[prompt, cell]` of some prompts at some kinds of site, in the order of `Bench.cells`

Contestant = Callable[[Sequence[int], Sequence[str]], Tensor]


def by_replay(bench: Bench) -> Contestant:
    def run(prompts: Sequence[int], kinds: Sequence[str]) -> Tensor:
        cleans = [bench.cleans[i] for i in prompts]
        chosen = [variant for kind in kinds for variant in variants(kind, bench.layers, bench.written(kind, prompts))]
        own = torch.stack([clean.logits for clean in cleans])[:, None]
        return kl_nats(own, replay(bench.tuned, cleans, chosen)[:, 1:])

    return run


def by_hooks(bench: Bench) -> Contestant:
    def run(prompts: Sequence[int], kinds: Sequence[str]) -> Tensor:
        found = []
        for i in prompts:
            chosen = [variant for kind in kinds for variant in variants(kind, bench.layers, bench.written(kind, [i]))]
            found.append(kl_nats(bench.cleans[i].logits, full(bench.tuned, [bench.cleans[i]], chosen)[0, 1:]))
        return torch.stack(found)

    return run


def by_transformer_lens(bench: Bench) -> Contestant:
    from transformer_lens.model_bridge import TransformerBridge

    names = {"resid_post": "blocks.{}.hook_out", "attn_out": "blocks.{}.attn.hook_out", "mlp_out": "blocks.{}.mlp.hook_out"}
    bridge = TransformerBridge.boot_transformers(
        str(bench.folder), hf_model=copy.deepcopy(bench.tuned.net), tokenizer=bench.tokenizer, device=str(bench.tuned.device)
    )
    bridge.eval()

    def cell(i: int, site: Site) -> Tensor:
        def write(activation: Tensor, hook: object) -> Tensor:
            activation[:, -1:] = bench.states[site][i]
            return activation

        with torch.inference_mode():
            logits = bridge.run_with_hooks(bench.cleans[i].ids[None], fwd_hooks=[(names[site.kind].format(site.layer), write)])
        return kl_nats(bench.cleans[i].logits, logits[0, -1].float())

    return lambda prompts, kinds: torch.stack([torch.stack([cell(i, site) for site in bench.cells(kinds)]) for i in prompts])


def by_nnsight(bench: Bench, invokes: int) -> Contestant:
    """One trace a cell, or one trace for every `invokes` cells, which nnsight runs as one batch."""
    from nnsight import TransformersModel

    lens = TransformersModel(copy.deepcopy(bench.tuned.net), tokenizer=bench.tokenizer, task="text-generation")

    def traced(i: int, sites: Sequence[Site]) -> list[Tensor]:
        ids, saved = bench.cleans[i].ids[None], []
        with torch.inference_mode(), lens.trace() as tracer:
            for site in sites:
                state = bench.states[site][i]
                with tracer.invoke(ids):
                    block = lens.model.layers[site.layer]
                    if site.kind == "resid_post":
                        block.output[:, -1:] = state
                    elif site.kind == "mlp_out":
                        block.mlp.output[:, -1:] = state
                    else:
                        block.self_attn.output[0][:, -1:] = state
                    saved.append(lens.lm_head.output[:, -1].save())
        return [kl_nats(bench.cleans[i].logits, logits[0].float()) for logits in saved]

    def run(prompts: Sequence[int], kinds: Sequence[str]) -> Tensor:
        cells = bench.cells(kinds)
        parts = [cells[start : start + invokes] for start in range(0, len(cells), invokes)]
        return torch.stack([torch.stack([kl for part in parts for kl in traced(i, part)]) for i in prompts])

    return run


# ---- measuring


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def best(work: Callable[[], object], turns: int = 3) -> float:
    return min(seconds_of(work) for _ in range(turns))


def matrix_rate(bench: Bench) -> float:
    """Floating-point operations a second of products of the model's own sizes: 480 rows through an MLP matrix and the unembedding, in the
    proportion in which a cell needs them."""
    shape, dtype, device = bench.tuned.shape, bench.tuned.dtype, bench.tuned.device
    rows = torch.randn(480, shape.d_model, dtype=dtype, device=device)
    share = 2 * shape.vocab * shape.d_model / flops_a_cell(bench)
    cost = 0.0
    for width, weight in ((shape.d_mlp, 1 - share), (shape.vocab, share)):
        matrix = torch.randn(shape.d_model, width, dtype=dtype, device=device)
        cost += weight * best(lambda matrix=matrix: rows @ matrix, 9) / (2 * 480 * matrix.numel())
    return 1 / cost


def flops_a_cell(bench: Bench) -> float:
    """Multiplications and additions that a cell needs: half the blocks on average (a variant is born where it is edited), and the unembedding."""
    shape = bench.tuned.shape
    head, body = shape.vocab * shape.d_model, sum(one.numel() for block in bench.tuned.blocks for one in block.parameters())
    return 2 * (body * (shape.n_layers + 1) / (2 * shape.n_layers) + head)


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory that `work` took beyond what the process held before (Linux; 0 elsewhere)."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return 0
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    reset.write_text("5")
    before = _held(status)
    work()
    return _held(status) - before


def _held(status: Path) -> int:
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def packs(bench: Bench, n_variants: int, prompts: int) -> list[list[int]]:
    """Prompts in passes of at most 512 rows, as a study packs them."""
    size = max(1, 512 // (n_variants + 1))
    return [list(range(start, min(start + size, prompts))) for start in range(0, prompts, size)]


def in_packs(bench: Bench, kinds: Sequence[str], prompts: int) -> Tensor:
    run = by_replay(bench)
    return torch.cat([run(pack, kinds) for pack in packs(bench, len(kinds) * len(bench.layers), prompts)])


def shallow(bench: Bench, n_layers: int) -> Bench:
    """The same network with its lowest blocks alone."""
    net = copy.deepcopy(bench.tuned.net)
    net.model.layers = nn.ModuleList(list(net.model.layers)[:n_layers])
    net.config.num_hidden_layers = n_layers
    tuned = wrap(net, side="tuned", ref=f"{n_layers} blocks")
    return replace(bench, tuned=tuned, cleans=[capture(tuned, clean.ids.tolist(), [], [0], keep_cache=True) for clean in bench.cleans])


# ---- the tables


@dataclass(kw_only=True)
class Line:
    """One contestant: what it runs, on how many prompts, and what it found."""

    name: str
    run: Callable[[], Tensor]
    n_prompts: int
    seconds: float = float("inf")
    kls: Tensor | None = None

    @property
    def cost(self) -> float:
        """Milliseconds a cell."""
        assert self.kls is not None
        return 1e3 * self.seconds / self.kls.numel()


def spread(everyone: int, few: int) -> list[int]:
    """`few` of the prompts, evenly spaced in length: the middle one, the quartiles, ..."""
    return [(2 * i + 1) * everyone // (2 * few) for i in range(few)]


def contestants(bench: Bench, everyone: int, few: list[int], peers: bool) -> list[Line]:
    plain = by_hooks(bench)
    lines = [
        Line(name="**mechdiff replay**, 90 variants a prompt", run=lambda: in_packs(bench, KINDS, everyone), n_prompts=everyone),
        Line(
            name="**mechdiff replay**, 30 variants a prompt",
            run=lambda: torch.cat([in_packs(bench, [kind], everyone) for kind in KINDS], 1),
            n_prompts=everyone,
        ),
        Line(name="plain hooks, a forward pass a cell", run=lambda: plain(few, KINDS), n_prompts=len(few)),
    ]
    if peers:
        lens, one, batched = by_transformer_lens(bench), by_nnsight(bench, 1), by_nnsight(bench, 30)
        lines += [
            Line(name=f"TransformerLens {version('transformer-lens')}", run=lambda: lens(few, KINDS), n_prompts=len(few)),
            Line(name=f"nnsight {version('nnsight')}", run=lambda: one(few, KINDS), n_prompts=len(few)),
            Line(name=f"nnsight {version('nnsight')}, 30 invokes a trace", run=lambda: batched(few, KINDS), n_prompts=len(few)),
        ]
    return lines


def side_by_side(bench: Bench, everyone: int, few: list[int], turns: int, peers: bool) -> list[str]:
    lines, rate = contestants(bench, everyone, few, peers), 0.0
    for turn in range(turns):
        rate = max(rate, matrix_rate(bench))
        for line in lines:
            for _ in range(3 if "replay" in line.name else 1):
                found: list[Tensor] = []
                line.seconds = min(line.seconds, seconds_of(lambda line=line, found=found: found.append(line.run())))
                line.kls = found[0]
            print(f"turn {turn + 1}: {line.name}, {line.cost:.2f} ms a cell", flush=True)
    oracle = next(line.kls for line in lines if line.name.startswith("plain"))
    assert oracle is not None
    fastest_other = min(line.cost for line in lines if "replay" not in line.name)
    text = [
        "| tool | cells | ms a cell | the best other / this | largest difference of a KL from plain hooks, nats | relative to that KL |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        assert line.kls is not None
        same = line.kls[few] if line.n_prompts == everyone else line.kls
        apart = (same - oracle).abs()
        relative = float((apart / oracle.clamp_min(1e-6)).max())
        text.append(
            f"| {line.name} | {line.kls.numel()} | {line.cost:.2f} | {fastest_other / line.cost:.1f} | {float(apart.max()):.1e} | {relative:.1e} |"
        )
    cost = min(line.cost for line in lines if "replay" in line.name) / 1e3
    reached = flops_a_cell(bench) / cost
    text += [
        "",
        f"A cell needs {flops_a_cell(bench) / 1e9:.3f} GFLOP. Matrix products of the model's own sizes ran at up to {rate / 1e9:.0f} GFLOP/s in this "
        f"run; replay, with everything around them, at {reached / 1e9:.0f}: {reached / rate:.0%}. Largest KL {float(oracle.max()):.2f} nats.",
    ]
    return text


def floor(bench: Bench) -> float:
    """Largest KL of an unedited replayed row against the model's own forward pass, in nats."""
    found = replay(bench.tuned, bench.cleans, variants("mlp_out", bench.layers, bench.written("mlp_out", range(len(bench.cleans)))))
    return float(kl_nats(torch.stack([clean.logits for clean in bench.cleans]), found[:, 0]).max())


def growth(bench: Bench) -> list[str]:
    """How the cost of a cell moves with variants, prompts, blocks and prompt length, and what memory does."""
    text = ["| what grows | value | ms a cell | most memory that it takes, GiB |", "|---|---|---|---|"]

    def row(what: str, value: int, work: Callable[[], Tensor]) -> None:
        cells = work().numel()
        peak = peak_bytes(work)
        text.append(f"| {what} | {value} | {best(work) / cells * 1e3:.2f} | {peak / 2**30:.2f} |")

    n_prompts = len(bench.cleans)
    for n in (1, 2, 3):
        row("variants a prompt", 30 * n, lambda n=n: in_packs(bench, KINDS[:n], n_prompts))
    for n in (1, 2, 4, 8, 16, 32):
        if n <= n_prompts:
            row("prompts (30 variants each)", n, lambda n=n: in_packs(bench, KINDS[:1], n))
    for i in (0, n_prompts // 2, n_prompts - 1):
        row("tokens of one prompt (90 variants)", len(bench.cleans[i].ids), lambda i=i: by_replay(bench)([i], KINDS))
    for n in (10, 20, 30):
        smaller = shallow(bench, n)
        row("blocks (3 variants each)", n, lambda smaller=smaller: in_packs(smaller, KINDS, n_prompts))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--peer-prompts", type=int, default=2, help="prompts on which a cell may cost a whole forward pass")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(2)
    text = [
        "# Speed", "", "Written by `make bench` (`benchmarks/speed.py` says what is measured).", "",
        f"{platform.machine()}, {torch.get_num_threads()} threads, {'CUDA' if torch.cuda.is_available() else 'CPU'}; torch {torch.__version__}, "
        f"transformers {version('transformers')}.",
    ]  # fmt: skip
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            bench = prepare(asked.prompts, dtype, Path(folder))
            lengths = ", ".join(str(len(clean.ids)) for clean in bench.cleans)
            sizes = f"Prompts of {lengths} tokens; {len(bench.layers)} blocks x {len(KINDS)} sites."
            text += ["", f"## {dtype}", "", f"{sizes} Noise floor {floor(bench):.0e} nats.", ""]
            peers = not asked.no_peers and dtype == "float32"
            few = spread(asked.prompts, asked.peer_prompts)
            text += side_by_side(bench, asked.prompts, few, asked.turns, peers)
            tokens = " and ".join(str(len(bench.cleans[i].ids)) for i in few)
            text += ["", f"The tools for which a cell is a forward pass ran the prompts of {tokens} tokens."]
            if dtype == "float32":
                text += ["", "## Growth (float32)", "", *growth(prepare(32, dtype, Path(folder) / "more"))]
    if asked.out.exists():  # what benchmarks/loads.py found stands last, and stays
        text += [f"\n{LOADS}{asked.out.read_text(encoding='utf-8').partition(LOADS)[2]}".rstrip()]
    asked.out.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(asked.out.read_text(), end="")


if __name__ == "__main__":
    main()
