"""The attention matrices of one block are given by head, from whatever tensors the family stores them in.

Heads' own coordinates are free: an invertible map on a head's values, undone in its output projection, changes no output. What these
matrices do is in their products (measures/weights/products.py); here they are only cut out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.families import Family
from mechdiff.architectures.lookup import shape_of

Read = Callable[[str], Float[Tensor, "..."] | None]
"""A tensor by its name, a matrix as [d_out, d_in]; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Projections:
    """One block's attention. The last column of query, key and value is the bias (0 where there is none): they act on (x, 1)."""

    query: Float[Tensor, "head d_head d_plus_one"]
    key: Float[Tensor, "group d_head d_plus_one"]
    value: Float[Tensor, "group d_head d_plus_one"]
    output: Float[Tensor, "head d d_head"]

    @property
    def heads_per_group(self) -> int:
        return len(self.query) // len(self.key)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a model's heads are."""

    family: Family
    n_heads: int
    n_groups: int
    """Key-value heads."""
    d_head: int

    def names(self, layer: int) -> list[str]:
        """The tensors of one block's attention that hold projections; not all families have all."""
        inputs, output = self.family.projections(layer) or ([], "")
        names = [f"{path}.{kind}" for path in inputs for kind in ("weight", "bias")] + [f"{output}.weight"] * bool(output)
        return [f"{self.family.blocks}.{layer}.{name}" for name in names]

    def cut(self, layer: int, read: Read) -> Projections | str:
        """The block's attention by head, in float64, or why it cannot be cut out (a sentence's end)."""
        if len(self.names(layer)) < 2:
            return "the row of its architecture was proposed, and the network does not show one matrix each for queries, keys and values"
        *inputs, output = (read(name) for name in self.names(layer))
        if output is None or any(weight is None for weight in inputs[::2]):
            missing = [
                name for name, found in zip(self.names(layer), [*inputs, output], strict=True) if found is None and "bias" not in name
            ]
            return f"{missing[0]} is not compared"
        whole = [_with_bias(weight, bias) for weight, bias in zip(inputs[::2], inputs[1::2], strict=True)]
        n_rows = (self.n_heads + 2 * self.n_groups) * self.d_head
        if sum(len(part) for part in whole) != n_rows or output.shape[1] != self.n_heads * self.d_head:
            return (
                f"its projections have {sum(len(part) for part in whole)} rows and {output.shape[1]} output columns, where the config's "
                f"{self.n_heads} heads, {self.n_groups} key-value heads of {self.d_head} make {n_rows} and {self.n_heads * self.d_head}"
            )
        query, key, value = self._split(torch.cat(whole))
        by_head = output.double().reshape(len(output), self.n_heads, self.d_head).transpose(0, 1)
        return Projections(query=query, key=key, value=value, output=by_head)

    def output(self, layer: int, read: Read) -> tuple[Float[Tensor, "head d_head d"], Float[Tensor, " d"]] | str:
        """What turns each head's z into its contribution z_h W_O^h, and the bias that no head owns (0 without one); or why it is not there."""
        if not self.names(layer):
            return "no matrix is its output projection"
        name = self.names(layer)[-1]
        weight, bias = read(name), read(name.removesuffix("weight") + "bias")
        if weight is None:
            return f"{name} is not compared"
        width = self.family.head_width(layer) or self.d_head
        if weight.shape[1] != self.n_heads * width:
            return f"{name} has {weight.shape[1]} input columns, where the config has {self.n_heads} heads of {width}"
        by_head = weight.reshape(len(weight), self.n_heads, width).permute(1, 2, 0)
        by_head = torch.nn.functional.pad(by_head, (0, 0, 0, self.d_head - width))  # as z is where blocks differ
        return by_head, weight.new_zeros(len(weight)) if bias is None else bias

    def _split(self, rows: Float[Tensor, "row d_plus_one"]) -> tuple[Tensor, Tensor, Tensor]:
        width = rows.shape[1]
        if self.family.fused and self.family.fused[1] == "by_group":
            grouped = rows.reshape(self.n_groups, -1, self.d_head, width)
            return grouped[:, :-2].reshape(self.n_heads, self.d_head, width), grouped[:, -2], grouped[:, -1]
        query, key, value = rows.reshape(-1, self.d_head, width).split([self.n_heads, self.n_groups, self.n_groups])
        return query, key, value


def _with_bias(weight: Float[Tensor, "d_out d_in"] | None, bias: Float[Tensor, " d_out"] | None) -> Float[Tensor, "d_out d_plus_one"]:
    assert weight is not None
    last = torch.zeros(len(weight), dtype=torch.float64, device=weight.device) if bias is None else bias.double()
    return torch.cat([weight.double(), last[:, None]], dim=1)


def layout_of(family: Family, config: Any) -> Layout:
    """The heads that a transformers config states."""
    shape = shape_of(config)
    return Layout(family=family, n_heads=shape.n_heads, n_groups=shape.n_kv_heads, d_head=shape.d_head)
