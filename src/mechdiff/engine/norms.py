"""The norm that reads the residual stream at a site is kept as numbers beside captured activations, and applied to them without the model.

A block never reads the residual stream as it is: its first norm stands before attention (`resid_pre`, and the `resid_post` of the block before), its
second before the MLP (`resid_mid`), the final norm behind the last block. A coordinate that is a hundred times as wide as the others shrinks them all
there, and a gain may take it out: what is alike after the norm is alike to the model.

Where the family has no such norm there are no numbers: blocks that norm what they add and read the stream as it is (OLMo 2 and 3; their last
`resid_post` is read by the final norm alone), and sites that nothing norms (`z`, `attn_proj`, `attn_out`, `mlp_out`). Where two norms read a site
side by side (parallel blocks of GPT-NeoX) it is the attention's. The numbers must do to captured states what the module does, or they are not kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from accelerate.utils import align_module_device
from jaxtyping import Float, Float64
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.models.pair import Model

NORMED = ("resid_pre", "resid_mid", "resid_post")
"""Site kinds that a norm may read."""
EPSILON = 1e-5
"""Of a norm that has it in its code alone (OLMo)."""
_ROUNDINGS = 8


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The norms that read one kind of site, by layer; NaN where none does."""

    gain: Float[Tensor, "layer d"]
    bias: Float[Tensor, "layer d"]
    eps: Float64[Tensor, " layer"]
    centred: Float64[Tensor, " layer"]
    """1 of a LayerNorm, which takes the mean over coordinates out; 0 of an RMSNorm."""

    def apply(self, at: int, states: Float[Tensor, "*row d"]) -> Float64[Tensor, "*row d"] | None:
        """States after the norm at place `at` of the layers, in float64; None where no norm reads them."""
        if self.gain[at].isnan().any():
            return None
        x = states.double().cpu()
        x = x - self.centred[at] * x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + self.eps[at]).sqrt() * self.gain[at] + self.bias[at]

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """For a cell's tensors, each under a name of its own."""
        return {f"norm.{kind}.{one.name}": getattr(self, one.name).numpy() for one in fields(self)}


def norms_in(tensors: Mapping[str, np.ndarray], kind: str) -> Norms | None:
    """What `arrays` wrote; None where it wrote nothing."""
    found = {one.name: tensors.get(f"norm.{kind}.{one.name}") for one in fields(Norms)}
    return None if found["gain"] is None else Norms(**{name: torch.from_numpy(value) for name, value in found.items()})


def norm_reading(model: Model, site: Site) -> nn.Module | None:
    """The module that norms what is read at a site, where the family has one."""
    family, layer = model.family, site.layer
    if site.kind not in NORMED:
        return None
    holder, path = model.blocks[layer], family.norms(layer)[0]
    if site.kind == "resid_mid":
        path = family.norms(layer)[1]
    elif site.kind == "resid_post" and layer + 1 == model.shape.n_layers:
        holder, path = model.net, family.final_norm
    elif site.kind == "resid_post":
        holder, path = model.blocks[layer + 1], family.norms(layer + 1)[0]
    return dict(holder.named_modules()).get(path) if path else None


def norms_of(model: Model, kind: str, states: Mapping[int, Float[Tensor, "row d"]]) -> Norms:
    """The norms that read a kind of site at some layers, held against what the modules make of `states` (layer -> states captured there)."""
    found = [_one(model, Site(layer, kind), rows) for layer, rows in states.items()]
    return Norms(**{one.name: torch.cat([getattr(part, one.name) for part in found]) for one in fields(Norms)})


def missing(norms: Norms, layers: Sequence[int]) -> list[int]:
    """The layers without a norm."""
    return [layer for layer, gain in zip(layers, norms.gain, strict=True) if gain.isnan().any()]


def _one(model: Model, site: Site, states: Float[Tensor, "row d"]) -> Norms:
    d = states.shape[-1]
    none = Norms(gain=torch.full((1, d), torch.nan), bias=torch.zeros(1, d), eps=torch.zeros(1).double(), centred=torch.zeros(1).double())
    module = norm_reading(model, site)
    if module is None:
        return none
    with align_module_device(module):  # weights on disk (--device split) are read as a forward pass reads them
        held = (getattr(module, name, None) for name in ("weight", "bias"))
        weight, bias = (None if tensor is None else tensor.detach().float().cpu() for tensor in held)
    gain = torch.ones(d) if weight is None else weight
    eps = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), EPSILON)
    norm = Norms(
        gain=(gain + (model.family.norm == "rms_plus_one"))[None],
        bias=(torch.zeros(d) if bias is None else bias)[None],
        eps=torch.tensor([float(eps)]).double(),
        centred=torch.tensor([float(model.family.norm == "layer")]).double(),
    )
    return norm if _agrees(norm, module, states) else none


def _agrees(norm: Norms, module: nn.Module, states: Float[Tensor, "row d"]) -> bool:
    """Whether the numbers do what the module does, up to rounding in its dtype."""
    rows = states[states.isfinite().all(-1)]
    with torch.inference_mode():
        expected = module(rows).double().cpu()
    found = norm.apply(0, rows)
    return found is not None and float((found - expected).norm()) <= _ROUNDINGS * torch.finfo(states.dtype).eps * float(expected.norm())
