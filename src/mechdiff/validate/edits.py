"""Known changes are planted into a network's weights: each function edits a model in place."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.errors import MechdiffError
from mechdiff.models.pair import wrap

Net = Any
"""A network of transformers: its modules are found by name."""

Edit = Callable[[Net], None]


class Absent(MechdiffError):
    """A model has no place for an edit."""


N_LAYERS, D_MODEL = 4, 64
"""Of the tiny network."""
LAYER = 1
"""The block that edits of one block change, where no other is named."""


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(shape: Sequence[int], seed: int = 7) -> Tensor:
    """Standard normal numbers, the same on every machine."""
    return torch.randn(tuple(shape), generator=generator(seed))


def add_low_rank(weight: Tensor, rank: int, size: float, seed: int = 7) -> None:
    """Add a random matrix of this rank and of `size` times the weight's norm."""
    change = noise((weight.shape[0], rank), seed) @ noise((rank, weight.shape[1]), seed + 1)
    weight.add_((change * (size * weight.norm().cpu() / change.norm())).to(weight))


def add_noise_to(weight: Tensor, size: float, seed: int = 7) -> None:
    """Add independent noise of `size` of the weight's norm."""
    change = noise(weight.shape, seed)
    weight.add_((change * (size * weight.norm().cpu() / change.norm())).to(weight))


# ---- edits of any model ------------------------------------------------------------------------------------------------------------


def identical(net: Net) -> None:
    """P0."""


def edit_attention(net: Net, layer: int = LAYER, *, rank: int = 2, size: float = 0.7, seed: int = 7) -> None:
    """P2: a low rank on the attention output projection of one block."""
    add_low_rank(attention_output(net, layer), rank, size, seed)


def edit_mlp(net: Net, layer: int = LAYER, *, rank: int = 2, size: float = 0.7, seed: int = 7) -> None:
    """P3: a low rank on the MLP's last matrix of one block."""
    add_low_rank(mlp_output(net, layer), rank, size, seed)


HEAD, GROUP, D_HEAD = 3, 1, 8
"""P4: the head, and the key-value group (heads 2 and 3), that are edited; a head's width in the tiny network."""


def edit_head_output(net: Net, layer: int = LAYER, head: int = HEAD) -> None:
    """P4a: the columns of one head in W_O of one block."""
    add_noise_to(head_output(net, layer, head), 0.5)


def add_noise(size: float) -> Edit:
    """P8: every matrix moved by `size` of its own spread in a random direction that is the same for every size."""

    def change(net: Net) -> None:
        random = generator()
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.add_((torch.randn(parameter.shape, generator=random) * size * parameter.std().cpu()).to(parameter))

    return change


def untie(net: Net) -> None:
    """Both models of P12 and P13: an unembedding of its own, where it was the embedding's."""
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.detach().clone())


def edit_unembedding(net: Net) -> None:
    """P12: noise on the unembedding alone."""
    add_noise_to(net.get_output_embeddings().weight, 0.3)


TOKEN, TIMES = 7, 3.0
"""P23: the row of the unembedding that is scaled, and by how much."""


def scale_token(net: Net) -> None:
    """P23: one row of the unembedding, and its bias, times TIMES: one logit of every distribution."""
    head = net.get_output_embeddings()
    head.weight[TOKEN].mul_(TIMES)
    if getattr(head, "bias", None) is not None:
        head.bias[TOKEN].mul_(TIMES)


def edit_embedding(net: Net) -> None:
    """P13: noise on the token embedding alone."""
    add_noise_to(net.get_input_embeddings().weight, 0.3)


def scale_heads(size: float) -> Edit:
    """P15: every W_O times 1 + size, so all heads change alike."""

    def change(net: Net) -> None:
        for layer in range(wrap(net, side="base", ref="planted").shape.n_layers):
            attention_output(net, layer).mul_(1 + size)

    return change


def child(seed: int, size: float = 0.01) -> Edit:
    """P9, P19: a fine-tune of its own: every tensor moved by `size` in a direction that the seed decides."""

    def change(net: Net) -> None:
        random = generator(seed)
        for parameter in net.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=random) * size).to(parameter))

    return change


def attention_output(net: Net, layer: int) -> Tensor:
    """W_O `[d, head * d_head]` of one block, in place."""
    model = wrap(net, side="base", ref="planted")
    weight = model.place(Site(layer, "attn_proj"))[0].get_parameter("weight")
    return weight.T if model.family.conv1d else weight


def head_output(net: Net, layer: int, head: int) -> Tensor:
    """W_O's columns of one head, `[d, d_head]`, in place."""
    width = wrap(net, side="base", ref="planted").shape.d_head
    return attention_output(net, layer)[:, head * width : (head + 1) * width]


def mlp_output(net: Net, layer: int) -> Tensor:
    """The MLP's last matrix `[d, d_mlp]` of one block, in place. Absent where it has none of its own: a mixture of experts."""
    model = wrap(net, side="base", ref="planted")
    modules = [model.blocks[layer].get_submodule(path) for kind, path in model.family.parts() if kind == "mlp"]
    matrices = [m.T if model.family.conv1d else m for module in modules for m in module.parameters() if m.ndim == 2]
    shape = (model.shape.d_model, model.shape.d_mlp)
    found = [matrix for matrix in matrices if tuple(matrix.shape) == shape]
    if not found or any(m.ndim > 2 for module in modules for m in module.parameters()):
        raise Absent(f"the MLP of block {layer} has no matrix of its own of shape {shape}")
    return found[-1]


def has_dense_mlps(net: Net) -> bool:
    """Whether blocks have an MLP of their own, and not experts."""
    try:
        mlp_output(net, 0)
    except Absent:
        return False
    return True


# ---- edits of the tiny network -----------------------------------------------------------------------------------------------------


def fold_norms(net: Net) -> None:
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


def rotate(net: Net) -> None:
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


def edit_head_query(net: Net) -> None:
    """P4b: the rows of head 3 in W_Q of block 1."""
    add_noise_to(net.model.layers[1].self_attn.q_proj.weight[HEAD * D_HEAD : (HEAD + 1) * D_HEAD], 0.5)


def edit_group_value(net: Net) -> None:
    """P4c: the rows of key-value group 1 in W_V of block 1."""
    add_noise_to(net.model.layers[1].self_attn.v_proj.weight[GROUP * D_HEAD : (GROUP + 1) * D_HEAD], 0.5)


def merged_lora(dtype: torch.dtype = torch.float32, *, rank: int = 4, size: float = 0.5) -> Edit:
    """P5: rank-4 changes of W_Q and W_V of block 2, merged and rounded to `dtype`."""

    def change(net: Net) -> None:
        for name in ("q_proj", "v_proj"):
            weight = net.model.layers[2].self_attn.get_submodule(name).weight
            add_low_rank(weight, rank, size)
            weight.copy_(weight.to(dtype))

    return change


def turn_head_values(net: Net) -> None:
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


def shuffle_neurons(net: Net) -> None:
    """P11: each MLP's neurons in another order and their up and down weights rescaled: the function unchanged."""
    for layer, block in enumerate(net.model.layers):
        random = generator(layer)
        order = torch.randperm(len(block.mlp.up_proj.weight), generator=random)
        scale = torch.exp2(torch.randint(-1, 2, (len(order),), generator=random).float())
        block.mlp.gate_proj.weight.copy_(block.mlp.gate_proj.weight[order])
        block.mlp.up_proj.weight.copy_(block.mlp.up_proj.weight[order] * scale[:, None])
        block.mlp.down_proj.weight.copy_(block.mlp.down_proj.weight[:, order] / scale)


BIASED = N_LAYERS - 1
"""P16: the block whose MLP gets a bias. Above the last block nothing reads earlier positions, so the decision position tells all."""


def give_mlp_bias(net: Net) -> None:
    """Both models of P16: the last MLP's output has a bias, 0."""
    net.model.layers[BIASED].mlp.down_proj.bias = nn.Parameter(torch.zeros(D_MODEL))


def add_mlp_bias(net: Net) -> None:
    """P16: the bias becomes the direction that raises one token."""
    direction = net.lm_head.weight[65]
    net.model.layers[BIASED].mlp.down_proj.bias.add_(direction * (2 / direction.norm()))


def twin_heads(net: Net) -> None:
    """Both models of P14: heads 0 and 1 of block 1, of one group, ask alike, so that their z is the same."""
    query = net.model.layers[1].self_attn.q_proj.weight
    query[D_HEAD : 2 * D_HEAD] = query[:D_HEAD]


def cancel_heads(net: Net) -> None:
    """P14: what one of the twin heads writes more, the other writes less."""
    output = net.model.layers[1].self_attn.o_proj.weight
    more = torch.randn(D_MODEL, D_HEAD, generator=generator()) * (0.7 * output[:, :D_HEAD].std())
    output[:, :D_HEAD] += more
    output[:, D_HEAD : 2 * D_HEAD] -= more
