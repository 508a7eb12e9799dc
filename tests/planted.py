"""Pairs of tiny models with one planted, known difference (a Llama of 4 blocks, d_model 64, 8 heads, 4 key-value heads, 256 tokens)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig

import pico
from mechdiff.engine.activations import Clean, capture
from mechdiff.engine.models import Model, wrap
from mechdiff.engine.replay import ENGINES
from mechdiff.engine.sites import Site
from mechdiff.measures.outcome import kl_nats
from mechdiff.measures.patching import variants

N_LAYERS, D_MODEL = 4, 64


def base_net(seed: int = 0, entropy_nats: float = 3.5) -> nn.Module:
    """A random network whose unembedding is scaled until its next-token laws have about this mean entropy."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=D_MODEL, intermediate_size=128, num_hidden_layers=N_LAYERS, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    net = pico.make_net(config, seed=seed)
    ids = torch.tensor(pico.prompts(1, longest=60, shortest=60))
    low, high = 0.1, 100.0
    head = net.lm_head.weight.data.clone()
    for _ in range(30):
        middle = (low * high) ** 0.5
        net.lm_head.weight.data = head * middle
        with torch.inference_mode():
            law = net(ids).logits.double().softmax(-1)
        low, high = (middle, high) if float(-(law * law.log()).sum(-1).mean()) > entropy_nats else (low, middle)
    return net


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A pair, the clean runs of both on the same prompts, and what was asked most."""

    base: Model
    tuned: Model
    prompts: list[list[int]]
    cleans: dict[str, list[Clean]]

    def states(self, side: str, kind: str) -> Tensor:
        """`[layer, prompt, d]` at the decision position."""
        return torch.stack([torch.stack([clean.states[Site(layer, kind)][-1] for clean in self.cleans[side]]) for layer in range(N_LAYERS)])

    def logits(self, side: str) -> Tensor:
        """`[prompt, vocab]`, clean; in float64, so that a share's rounding is the engine's alone."""
        return torch.stack([clean.logits for clean in self.cleans[side]]).double()

    @property
    def d_nats(self) -> Tensor:
        """`[prompt]`: KL(tuned || base)."""
        return kl_nats(self.logits("tuned"), self.logits("base"))

    def patched(self, direction: str, kind: str, *, positions: str = "decision", engine: str | None = None) -> Tensor:
        """Logits `[prompt, layer, vocab]` with the other model's state written at each block's `kind`."""
        runs, other = (self.tuned, "base") if direction == "tuned<-base" else (self.base, "tuned")
        engine = engine or ("relay" if positions == "all" else "replay")
        found = []
        for own, theirs in zip(self.cleans["tuned" if other == "base" else "base"], self.cleans[other], strict=True):
            n_pos = len(own.ids) if positions == "all" else 1
            written = torch.stack([theirs.states[Site(layer, kind)][-n_pos:] for layer in range(N_LAYERS)])[:, None]
            found.append(ENGINES[engine](runs, [own], variants(kind, range(N_LAYERS), written))[0, 1:])
        return torch.stack(found).double()

    def breakage(self, kind: str, **how: str) -> Tensor:
        """`[prompt, layer]` KL(tuned || tuned[site <- base]) in nats."""
        return kl_nats(self.logits("tuned")[:, None], self.patched("tuned<-base", kind, **how))

    def recovery(self, kind: str, **how: str) -> Tensor:
        """`[layer]` 1 - KL(tuned || base[site <- tuned]) / D, a ratio of means over prompts."""
        return 1 - kl_nats(self.logits("tuned")[:, None], self.patched("base<-tuned", kind, **how)).mean(0) / self.d_nats.mean()


def plant(
    change: Callable[[nn.Module], None], *, n_prompts: int = 6, seed: int = 0, prepare: Callable[[nn.Module], None] | None = None
) -> Planted:
    """The pair base, change(base); `prepare` is applied to both."""
    net = base_net(seed)
    with torch.no_grad():
        if prepare:
            prepare(net)
        other = copy.deepcopy(net)
        change(other)
    base, tuned = wrap(net, side="base", ref="planted base"), wrap(other, side="tuned", ref="planted tuned")
    prompts = pico.prompts(n_prompts, seed=seed + 1)
    sites = [Site(layer, kind) for layer in range(N_LAYERS) for kind in base.kinds()]
    cleans = {m.side: [capture(m, ids, sites, range(len(ids)), keep_cache=True) for ids in prompts] for m in (base, tuned)}
    return Planted(base=base, tuned=tuned, prompts=prompts, cleans=cleans)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def low_rank(weight: Tensor, rank: int, size: float) -> None:
    """Add a random matrix of this rank and of `size` times the weight's norm."""
    made = torch.randn(weight.shape[0], rank, generator=generator()) @ torch.randn(rank, weight.shape[1], generator=generator(8))
    weight.add_(made * (size * weight.norm() / made.norm()))


def identical(net: nn.Module) -> None:
    """P0."""


def fold_norms(net: nn.Module) -> None:
    """Move every norm's gain into the weights that read behind it: the function stays the same, the residual basis becomes free."""
    for block in net.model.layers:
        for norm, readers in (
            (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
            (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.mul_(norm.weight)
            norm.weight.fill_(1)
    net.lm_head.weight.mul_(net.model.norm.weight)
    net.model.norm.weight.fill_(1)


def rotate(net: nn.Module) -> None:
    """P1: the residual stream in another orthogonal basis, the function unchanged (RMSNorm without gains commutes with rotations)."""
    rotation = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator(), dtype=torch.float64))[0]

    def times(weight: Tensor, left: bool) -> None:
        weight.copy_(rotation.T @ weight.double() if left else weight.double() @ rotation)

    times(net.model.embed_tokens.weight, left=False)
    times(net.lm_head.weight, left=False)
    for block in net.model.layers:
        for reader in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj, block.mlp.gate_proj, block.mlp.up_proj):
            times(reader.weight, left=False)
        times(block.self_attn.o_proj.weight, left=True)
        times(block.mlp.down_proj.weight, left=True)


def edit_attention(net: nn.Module) -> None:
    """P2: rank 2 on the attention output projection of block 1."""
    low_rank(net.model.layers[1].self_attn.o_proj.weight, 2, 0.7)


def edit_mlp(net: nn.Module) -> None:
    """P3: rank 2 on the MLP's output matrix of block 1."""
    low_rank(net.model.layers[1].mlp.down_proj.weight, 2, 0.7)


def add_noise(size: float) -> Callable[[nn.Module], None]:
    """P8: every matrix moved by `size` of its own spread in a random direction that is the same for every size."""

    def change(net: nn.Module) -> None:
        random = generator()
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=random) * size * parameter.std())

    return change


def edit_embedding(net: nn.Module) -> None:
    """P13: noise on the token embedding alone."""
    net.model.embed_tokens.weight.add_(torch.randn(net.model.embed_tokens.weight.shape, generator=generator()) * 0.1)


HEAD, GROUP, D_HEAD = 3, 1, 8
"""P4: the head, and the key-value group (heads 2 and 3), that are edited."""


def _noise(weight: Tensor, size: float, seed: int = 7) -> None:
    """Add independent noise of `size` of the weight's norm."""
    made = torch.randn(weight.shape, generator=generator(seed))
    weight.add_(made * (size * weight.norm() / made.norm()))


def edit_head_output(net: nn.Module) -> None:
    """P4a: the columns of head 3 in W_O of block 1."""
    _noise(net.model.layers[1].self_attn.o_proj.weight[:, HEAD * D_HEAD : (HEAD + 1) * D_HEAD], 0.5)


def edit_head_query(net: nn.Module) -> None:
    """P4b: the rows of head 3 in W_Q of block 1."""
    _noise(net.model.layers[1].self_attn.q_proj.weight[HEAD * D_HEAD : (HEAD + 1) * D_HEAD], 0.5)


def edit_group_value(net: nn.Module) -> None:
    """P4c: the rows of key-value group 1 in W_V of block 1."""
    _noise(net.model.layers[1].self_attn.v_proj.weight[GROUP * D_HEAD : (GROUP + 1) * D_HEAD], 0.5)


def merged_lora(dtype: torch.dtype = torch.float32, *, rank: int = 4, size: float = 0.5) -> Callable[[nn.Module], None]:
    """P5: rank-4 changes of W_Q and W_V of block 2, merged and rounded to `dtype`."""

    def change(net: nn.Module) -> None:
        for name in ("q_proj", "v_proj"):
            weight = net.model.layers[2].self_attn.get_submodule(name).weight
            low_rank(weight, rank, size)
            weight.copy_(weight.to(dtype))

    return change


def turn_head_values(net: nn.Module) -> None:
    """P10: every key-value group's values in another basis, undone in its heads' output projections: the function unchanged."""
    for layer, block in enumerate(net.model.layers):
        value, output = block.self_attn.v_proj.weight, block.self_attn.o_proj.weight
        for group in range(4):
            turn = torch.linalg.qr(torch.randn(D_HEAD, D_HEAD, generator=generator(100 * layer + group), dtype=torch.float64))[0]
            rows = slice(group * D_HEAD, (group + 1) * D_HEAD)
            value[rows] = (turn @ value[rows].double()).float()
            for head in (2 * group, 2 * group + 1):
                columns = slice(head * D_HEAD, (head + 1) * D_HEAD)
                output[:, columns] = (output[:, columns].double() @ turn.T).float()


def shuffle_neurons(net: nn.Module) -> None:
    """P11: each MLP's neurons in another order and their up and down weights rescaled: the function unchanged."""
    for layer, block in enumerate(net.model.layers):
        random = generator(layer)
        order = torch.randperm(len(block.mlp.up_proj.weight), generator=random)
        scale = torch.exp2(torch.randint(-1, 2, (len(order),), generator=random).float())
        block.mlp.gate_proj.weight.copy_(block.mlp.gate_proj.weight[order])
        block.mlp.up_proj.weight.copy_(block.mlp.up_proj.weight[order] * scale[:, None])
        block.mlp.down_proj.weight.copy_(block.mlp.down_proj.weight[:, order] / scale)


def scale_heads(size: float) -> Callable[[nn.Module], None]:
    """P15: every W_O times 1 + size, so all heads change alike."""

    def change(net: nn.Module) -> None:
        for block in net.model.layers:
            block.self_attn.o_proj.weight.mul_(1 + size)

    return change


def child(seed: int, size: float = 0.01) -> Callable[[nn.Module], None]:
    """P19: a fine-tune of its own: every tensor moved by `size` in a direction that the seed decides."""

    def change(net: nn.Module) -> None:
        random = generator(seed)
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * size)

    return change


BIASED = N_LAYERS - 1
"""P16: the block whose MLP gets a bias. Above the last block nothing reads earlier positions, so the decision position tells all."""


def give_mlp_bias(net: nn.Module) -> None:
    """Both models of P16: the last MLP's output has a bias, 0."""
    net.model.layers[BIASED].mlp.down_proj.bias = nn.Parameter(torch.zeros(D_MODEL))


def add_mlp_bias(net: nn.Module) -> None:
    """P16: the bias becomes the direction that raises one token."""
    direction = net.lm_head.weight[65]
    net.model.layers[BIASED].mlp.down_proj.bias.add_(direction * (2 / direction.norm()))


def twin_heads(net: nn.Module) -> None:
    """Both models of P14: heads 0 and 1 of block 1, of one group, ask alike, so that their z is the same."""
    query = net.model.layers[1].self_attn.q_proj.weight
    query[D_HEAD : 2 * D_HEAD] = query[:D_HEAD]


def cancel_heads(net: nn.Module) -> None:
    """P14: what one of the twin heads writes more, the other writes less."""
    output = net.model.layers[1].self_attn.o_proj.weight
    more = torch.randn(D_MODEL, D_HEAD, generator=generator()) * (0.7 * output[:, :D_HEAD].std())
    output[:, :D_HEAD] += more
    output[:, D_HEAD : 2 * D_HEAD] -= more
