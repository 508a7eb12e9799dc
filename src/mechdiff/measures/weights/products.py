"""What do a head's weights do, whatever the basis of its own coordinates? Its OV and QK products do not depend on it.

A head reads the normed residual stream x by W_Q, W_K, W_V and writes z W_O. Its own d_head coordinates are free: W_V -> G W_V with
W_O -> W_O G^-1 changes every entry of both and nothing that the model says. What the head does is in

    OV = W_O^h W_V^g         what it writes, of what it attends to         [d, d]
    QK = (W_Q^h)^T W_K^g     what it attends to                            [d, d]

with g its key-value group (Elhage 2021, a mathematical framework for transformer circuits). `ov_relative_norm` and `qk_relative_norm` are
||product_tuned - product_base||_F / ||product_base||_F: 0 where the head does the same, though its matrices may differ (METHOD P10).

No d x d matrix is made. The difference of two products is one product of stacked factors, O_t V_t - O_b V_b = [O_t - O_b, O_b] [V_t; V_t - V_b],
and ||A B||_F^2 = tr((A^T A)(B B^T)) with Gram matrices of 2 d_head. (In this form an unchanged head is exactly 0 and a small change does not cancel.)

Biases of queries, keys and values count as a further column, acting on (x, 1). Not in the products: the output projection's bias (no head's
own), norms of queries and keys, the gain of the norm before attention (moved into the weights, it shows as a change), and rotary embeddings:
QK is the product at relative offset 0.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from mechdiff.models.projections import Projections


def product_norm(left: Float64[Tensor, "*head m k"], right: Float64[Tensor, "*head k n"]) -> Float64[Tensor, "*head"]:
    """||left @ right||_F without the product."""
    grams = (left.mT @ left) * (right @ right.mT)
    return grams.sum((-2, -1)).clamp(min=0).sqrt()


def product_change(
    left_base: Float64[Tensor, "*head m k"],
    right_base: Float64[Tensor, "*head k n"],
    left_tuned: Float64[Tensor, "*head m k"],
    right_tuned: Float64[Tensor, "*head k n"],
) -> Float64[Tensor, "*head"]:
    """||left_tuned @ right_tuned - left_base @ right_base||_F / ||left_base @ right_base||_F."""
    left = torch.cat([left_tuned - left_base, left_base], dim=-1)
    right = torch.cat([right_tuned, right_tuned - right_base], dim=-2)
    return product_norm(left, right) / product_norm(left_base, right_base)


def head_changes(base: Projections, tuned: Projections) -> tuple[Float64[Tensor, " head"], Float64[Tensor, " head"]]:
    """Relative change of each head's OV and QK product."""
    ov, qk = [], []
    for head in range(len(base.query)):
        group = head // base.heads_per_group
        ov.append(product_change(base.output[head], base.value[group], tuned.output[head], tuned.value[group]))
        qk.append(product_change(base.query[head].T, base.key[group], tuned.query[head].T, tuned.key[group]))
    return torch.stack(ov), torch.stack(qk)
