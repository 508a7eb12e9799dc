"""Weights that a file holds in 8 or 4 bits as numbers times scales are found beside their scales and decoded.

| in the file | what it is |
|---|---|
| `X` in F8_E4M3 or F8_E5M2, `X_scale_inv` | blocks of 128 x 128 (or the config's `weight_block_size`), each times its scale (DeepSeek) |
| `X` in F8_E4M3 or F8_E5M2, `X_scale` | rows, groups of a row, or the whole matrix, times a scale (MXFP8: in U8, an exponent of two) |
| `X` in F8_E4M3 or F8_E5M2 alone | the numbers themselves |
| `X_blocks` and `X_scales` in U8 | MXFP4 (GPT-OSS): 32 numbers of 4 bits (E2M1) times a power of two; the network holds them transposed |

A scale may lie in another shard than its weight. What is in no such form is left as it is, and is not compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mechdiff.files.packed import E2M1, powers

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


def scale_of(name: str, names: Mapping[str, Any]) -> str | None:
    """The name of the tensor that an 8-bit weight of this name is multiplied by; None where the files hold none."""
    return next((name + ending for ending in ("_scale_inv", "_scale") if name + ending in names), None)


def block_of(quantizer: Mapping[str, Any]) -> tuple[int, int]:
    """The sides of the blocks that share a scale, by the `quantization_config` of a model's config."""
    groups = (quantizer.get("config_groups") or {}).values()
    parts = [part for one in groups if isinstance(one, Mapping) for part in one.values() if isinstance(part, Mapping)]
    of_groups = [part.get("block_structure") for part in parts]
    sides = quantizer.get("weight_block_size") or next((one for one in of_groups if one), None) or (128, 128)
    return int(sides[0]), int(sides[1])


def decoded_float8(codes: Shaped[Tensor, "..."], scale: Float[Tensor, "..."] | None, block: tuple[int, int]) -> Float[Tensor, "..."]:
    """An 8-bit weight in float32: by blocks (or groups of one row) where its scale has more than one column, else by rows or as a whole."""
    numbers = codes.float()
    if scale is None:
        return numbers
    scale = powers(scale) if scale.dtype == torch.uint8 else scale.float()
    if scale.numel() == 1:
        return numbers * scale.reshape(())
    if scale.ndim == 1:
        return numbers * scale.reshape(-1, *[1] * (numbers.ndim - 1))
    if scale.shape[-1] > 1 or (numbers.ndim == scale.ndim and scale.shape[-2] != numbers.shape[-2]):
        rows, columns = numbers.shape[-2:]
        if scale.shape[-2] == rows:
            block = 1, -(-columns // scale.shape[-1])
        scale = scale.repeat_interleave(block[0], -2)[..., :rows, :].repeat_interleave(block[1], -1)[..., :columns]
    return numbers * scale


def mxfp4_shape(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the weight that blocks of this shape hold: the numbers of a row in groups of 32, and transposed."""
    *leading, rows, groups, packed = blocks
    return (*leading, groups * packed * 2, rows)


def decoded_mxfp4(
    blocks: Shaped[Tensor, "*expert row group packed"], scales: Shaped[Tensor, "*expert row group"]
) -> Float[Tensor, "*expert d_in row"]:
    """Experts' matrices in float32 from 4-bit numbers, the lower half of a byte first, and exponents of two with bias 127."""
    table = torch.tensor([*E2M1, *(-number for number in E2M1)])
    halves = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)
    numbers = torch.ldexp(table[halves.long()], scales.int()[..., None] - 127)
    return numbers.flatten(-2).transpose(-1, -2).contiguous()


def in_small_floats(stored: dict[str, Any], rename: Callable[..., Any], quantizer: Mapping[str, Any]) -> dict[str, Any]:
    """`stored` with each small float as one tensor that knows its scale, and without the scales. `rename` makes a Stored of another."""
    found = dict(stored)
    block = block_of(quantizer)
    for name, where in stored.items():
        if where.codes:
            continue
        if where.dtype in FLOAT8 and not name.endswith(("_scale", "_scale_inv")):
            beside = scale_of(name, stored)
            found[name] = rename(where, codes="float8", beside={"scale": stored[beside]} if beside else {}, block=block)
            if beside:
                del found[beside]
        elif name.endswith("_blocks") and where.dtype == "U8" and (scales := f"{name.removesuffix('_blocks')}_scales") in stored:
            shape = mxfp4_shape(where.shape)
            found[name.removesuffix("_blocks")] = rename(where, codes="mxfp4", beside={"scale": stored[scales]}, shape=shape)
            del found[name], found[scales]
    return found
