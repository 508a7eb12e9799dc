"""What the properties are drawn from: families of pico models and pairs of them, prompts, sites, positions, and states of a drawn spectrum.

Every draw is the same on every machine (`derandomize`), so a property that fails once fails everywhere.
"""

import copy
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mechdiff.architectures.sites import KINDS, Site
from mechdiff.engine.activations import Clean, Edit, capture, edited, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES
from mechdiff.models.pair import Model, wrap
from pico import CONFIGS, RELAYED, pico, prompts, twin

N_LAYERS = 4
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "qwen2_moe", "qwen3_next", "deepseek_v3")
"""Where tokens are sent to experts in groups, a token sent elsewhere changes the shape of the others' matrix products, and so their last bits."""
FLOOR_NATS = {torch.float32: 1e-10, torch.bfloat16: 1e-3}
"""KL between one run and the same run in other matrix shapes."""
CLOSE = {"rtol": 0, "atol": 1e-5}
"""Float32 logits of size 10; parallel rows run in other matrix shapes than a forward pass does."""

seeds = st.integers(0, 10_000)
families = st.sampled_from(sorted(CONFIGS))
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
token_ids = st.builds(lambda seed, length: prompts(1, seed=seed, shortest=length, longest=length)[0], seeds, st.integers(2, 21))
"""One prompt, shorter or longer than the pico models' sliding window of 8."""


def examples(n: int) -> Callable[[Any], Any]:
    """So many draws, the same ones everywhere, where DRAWS=all (`make test-slow`); else two fifths of them."""
    drawn = n if os.environ.get("DRAWS") == "all" else max(2, 2 * n // 5)
    return settings(max_examples=drawn, derandomize=True, phases=(Phase.explicit, Phase.generate, Phase.shrink))


# ---- models ------------------------------------------------------------------------------------------------------------------------


@cache
def loaded(name: str, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Model:
    return pico(name, dtype=dtype, attention=attention)


@cache
def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[Model, Model]:
    """Two models with other weights in every block, and one embedding, final norm and unembedding."""
    base = loaded(name, dtype)
    return base, twin(base, other_blocks)


def other_blocks(net: nn.Module) -> None:
    torch.manual_seed(5)
    for parameter in blocks_of(net).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)


def blocks_of(net: nn.Module) -> nn.Module:
    return net.get_submodule(wrap(net, side="base", ref="").family.blocks)


def hybrid(below: Model, above: Model, layer: int) -> Model:
    """The network of `below`'s blocks up to `layer` and of `above`'s behind it, put together from their weights."""
    net = copy.deepcopy(above.net)
    for mine, theirs in list(zip(blocks_of(net).children(), below.blocks, strict=True))[: layer + 1]:
        mine.load_state_dict(theirs.state_dict())
    return wrap(net, side="tuned", ref="hybrid")


def sites_of(model: Model, kinds: Collection[str] = KINDS) -> list[Site]:
    return [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds() if kind in kinds]


def engines_of(name: str) -> list[str]:
    """The engines that are right for a family."""
    return ["relay", "full"] if name in RELAYED else ["replay", "relay", "full"]


# ---- runs --------------------------------------------------------------------------------------------------------------------------


def logits(model: Model, ids: Sequence[int], edits: Mapping[Site, Edit] | None = None) -> Tensor:
    """`[pos, vocab]` of one whole forward pass under edits."""
    with edited(model, edits or {}):
        found = forward(model, torch.tensor([ids]), logits_to_keep=0, use_cache=False).logits[0].float()
    return found.clone()


def at(positions: Sequence[int], value: Tensor) -> Edit:
    """An edit that writes `value` `[pos, d]` at these positions of every sequence."""

    def write(tensor: Tensor) -> None:
        tensor[:, list(positions)] = value

    return write


def clean_of(model: Model, ids: Sequence[int], sites: Sequence[Site] = (), n_pos: int = 1) -> Clean:
    """The clean run with its last `n_pos` states, and its cache where replay can use it."""
    keep = ENGINES[engine_for(model.config)[0]] is ENGINES["replay"]
    return capture(model, ids, sites, range(len(ids) - n_pos, len(ids)), keep_cache=keep)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kl(reference: Tensor, run: Tensor) -> Tensor:
    """KL(reference || run) in nats, the definition in float64."""
    log_p, log_q = reference.double().log_softmax(-1), run.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


# ---- states ------------------------------------------------------------------------------------------------------------------------


def spread(seed: int, n: int, d: int, decay: float = 0.0) -> Tensor:
    """`[n, d]` of independent rows in float64, whose spectrum falls as 1/i to the power `decay`, in a random basis."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows * torch.arange(1, d + 1).double() ** -decay @ rotation(seed + 1, d) if decay else rows


def rotation(seed: int, d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
