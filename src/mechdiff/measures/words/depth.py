"""At which block does a model decide? What every block hands on is read as if it were the last, and held against what the model says in the end.

    kl_nats     KL(final distribution || the one that the model's own norm and unembedding read from the block's output), at the last prompt token;
                0 at the last block
    top1_share  the share of prompts on which the token that is read there is the one that comes out

A base and its fine-tune share the basis in which their activations are written, so at one layer the two can be held against each other. A large KL
at an early layer may also mean that the lens reads that layer badly, in both alike (nostalgebraist 2020; Belrose et al. 2023).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechdiff.models.pair import Model


def read_out(model: Model, states: Float[Tensor, "*row d"]) -> Float[Tensor, "*row vocab"]:
    """Logits that the model's own final norm and unembedding give activations of the residual stream; at the last block its own, to rounding."""
    norm = model.net.get_submodule(model.family.final_norm) if model.family.final_norm else nn.Identity()
    with torch.inference_mode():
        return model.head(norm(states.to(device=model.device, dtype=model.dtype))).float().cpu()


def by_depth(
    model: Model, states: Float[Tensor, "layer prompt d"], laws: Float[Tensor, "prompt vocab"], place: Callable[[Tensor], Tensor]
) -> tuple[Float[np.ndarray, " layer"], Int[np.ndarray, "layer prompt"]]:
    """KL of every layer's lens to the model's final distribution `laws` (log p), mean over prompts, and the token that it reads on each.

    `place`: from logits of the model to the tokens of `laws`.
    """
    final, kl, top = laws.double(), [], []
    for one in states:
        read = place(read_out(model, one)).double().log_softmax(-1)
        kl.append(float((final.exp() * (final - read)).nan_to_num().sum(-1).mean()))
        top.append(read.argmax(-1).numpy())
    return np.array(kl), np.stack(top)
