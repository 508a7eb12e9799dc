"""Weights that a file holds as whole numbers in few bits, or as 4-bit floats, times scales are found beside their scales and decoded.

| in the file | what it is |
|---|---|
| `X.qweight`, `X.qzeros`, `X.scales`, `X.g_idx` | GPTQ: (q - z) s; q packed along the inputs, z written one less (not in `gptq_v2`) |
| `X.qweight`, `X.qzeros`, `X.scales` | AWQ: (q - z) s; both packed along the outputs, eight in the order 0 2 4 6 1 3 5 7 |
| `X.weight_packed` in I32, `X.weight_scale`, `X.weight_shape` | compressed-tensors: (q - z) s; z = 2^(bits - 1), or `weight_zero_point` |
| `X.weight` in I8, `X.weight_scale` | compressed-tensors: q s, or (q - `weight_zero_point`) s |
| `X.weight_packed` or `X.weight` in U8, `X.weight_scale` in F8_E4M3, `X.weight_global_scale` or `X.weight_scale_2` | NVFP4: two E2M1 numbers a byte |
| `X.weight_packed` in U8, `X.weight_scale` in U8 | MXFP4 of compressed-tensors: two E2M1 numbers a byte, times a power of two a group of 32 |

An NVFP4 number is multiplied by the scale of its 16 and by one of the tensor: divided by `weight_global_scale`, multiplied by `weight_scale_2`.
Groups are told by shapes, so no config is needed to decode but for GPTQ's zeros. What is in no such form is left as it is, and is not compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

KINDS = ("gptq", "gptq_v2", "awq", "packed", "whole", "nvfp4", "mxfp4_rows")
"""Names of the forms, as `Stored.codes`."""

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a 4-bit number stand for; the fourth is the sign."""

_AWQ = [0, 4, 1, 5, 2, 6, 3, 7]
"""Place of the column in a packed word: the inverse of the order in which AWQ packs eight."""

_ACTIVATIONS = tuple(
    f".{what}_{end}" for what in ("input", "output", "q", "k", "v", "activation") for end in ("scale", "scale_ub", "zero_point", "global_scale")
)  # fmt: skip
"""Endings of what rounds activations: no weights."""


def in_packed(
    stored: dict[str, Any], rename: Callable[..., Any], quantizer: Mapping[str, Any], read: Callable[[Any], Tensor]
) -> dict[str, Any]:
    """`stored` with each packed weight as one tensor that knows what lies beside it. `rename` makes a Stored of another, `read` reads one whole."""
    found = dict(stored)
    if quantizer:
        found = {name: where for name, where in found.items() if not name.endswith(_ACTIVATIONS)}
    for name in stored:
        layer = name.rpartition(".")[0]
        made = None
        if name.endswith(".qweight"):
            made = _by_inputs(layer, stored, quantizer)
        elif name.endswith(".weight_packed") or (name.endswith(".weight") and stored[name].dtype in ("I8", "U8")):
            made = _compressed(name, stored, read)
        if made is None:
            continue
        codes, shape, parts = made
        beside = {role: stored[f"{layer}.{part}"] for role, part in parts.items()}
        for part in (name, *(f"{layer}.{part}" for part in (*parts.values(), "weight_shape"))):
            found.pop(part, None)
        found[f"{layer}.weight"] = rename(stored[name], codes=codes, shape=shape, beside=beside, transposed=False)
    return found


def _by_inputs(layer: str, stored: Mapping[str, Any], quantizer: Mapping[str, Any]) -> tuple[str, tuple[int, ...], dict[str, str]] | None:
    """GPTQ or AWQ, by which axis is packed."""
    parts = {role: role for role in ("scales", "qzeros") if f"{layer}.{role}" in stored}
    codes = _file_shape(stored[f"{layer}.qweight"])
    if parts.keys() != {"scales", "qzeros"} or len(codes) != 2:
        return None
    scales = _file_shape(stored[f"{layer}.scales"])
    if codes[1] == scales[1]:
        if f"{layer}.g_idx" in stored:
            parts["g_idx"] = "g_idx"
            inputs = _file_shape(stored[f"{layer}.g_idx"])[0]
        else:
            inputs = codes[0] * 32 // int(quantizer.get("bits", 4))
        return ("gptq_v2" if quantizer.get("checkpoint_format") == "gptq_v2" else "gptq"), (codes[1], inputs), parts
    if codes[1] * 8 == scales[1]:
        return "awq", (scales[1], codes[0]), parts
    return None


def _file_shape(where: Any) -> tuple[int, ...]:
    """A tensor's shape as it lies in the file."""
    return tuple(where.shape[::-1]) if where.transposed else tuple(where.shape)


def _compressed(name: str, stored: Mapping[str, Any], read: Callable[[Any], Tensor]) -> tuple[str, tuple[int, ...], dict[str, str]] | None:
    layer, where = name.rpartition(".")[0], stored[name]
    shape = _file_shape(where)
    named = (("scale", "weight_scale"), ("zero", "weight_zero_point"), ("g_idx", "weight_g_idx"))
    parts = {role: part for role, part in named if f"{layer}.{part}" in stored}
    if "scale" not in parts or len(shape) != 2:
        return None
    if where.dtype == "U8" and stored[f"{layer}.weight_scale"].dtype == "U8":
        return "mxfp4_rows", (shape[0], shape[1] * 2), parts
    if where.dtype == "U8":
        one = next((part for part in ("weight_global_scale", "weight_scale_2") if f"{layer}.{part}" in stored), None)
        if one is None or stored[f"{layer}.weight_scale"].dtype != "F8_E4M3":
            return None
        return "nvfp4", (shape[0], shape[1] * 2), {**parts, "divisor" if one == "weight_global_scale" else "factor": one}
    if where.dtype == "I32" and f"{layer}.weight_shape" in stored:
        rows, columns = (int(one) for one in read(stored[f"{layer}.weight_shape"]))
        return ("packed", (rows, columns), parts) if _bits(shape[1], columns) else None
    return ("whole", shape, parts) if where.dtype == "I8" else None


# ---- decoding ----------------------------------------------------------------------------------------------------------------------


def decoded(kind: str, codes: Shaped[Tensor, "..."], beside: Mapping[str, Tensor], shape: tuple[int, ...]) -> Float[Tensor, "d_out d_in"]:
    """The matrix that packed codes stand for, in float32."""
    if kind in ("nvfp4", "mxfp4_rows"):
        return _four_bit(codes, beside)
    if kind == "awq":
        q, z = (_columns_of_awq(beside_or) for beside_or in (codes, beside["qzeros"]))
        return _by_groups(q.T, z.T, beside["scales"].float().T, None)
    if kind in ("gptq", "gptq_v2"):
        bits = codes.shape[0] * 32 // shape[1]
        q = unpacked(codes, bits, 0)[: shape[1]]
        z = unpacked(beside["qzeros"], bits, 1)[:, : shape[0]]
        z = z if kind == "gptq_v2" else (z + 1) & (2**bits - 1)
        return _by_groups(q.T, z.T, beside["scales"].float().T, beside.get("g_idx"))
    scale = beside["scale"].float().reshape(shape[0] if beside["scale"].numel() > 1 else 1, -1)
    zero = beside.get("zero")
    if kind == "whole":
        return _by_groups(codes, torch.zeros(1, 1) if zero is None else zero.reshape(scale.shape), scale, None)
    bits = _bits(codes.shape[1], shape[1])
    q = unpacked(codes, bits, 1)[:, : shape[1]]
    z = torch.full((1, 1), 2 ** (bits - 1)) if zero is None else unpacked(zero, bits, 0)[: shape[0]]
    return _by_groups(q, z, scale, beside.get("g_idx"))


def _bits(words: int, columns: int) -> int:
    """In how many bits so many columns fill so many words; 0 where none do."""
    usual = (bits for bits in (2, 4, 8) if -(-columns * bits // 32) == words)
    return next(usual, next((bits for bits in (1, 3, 5, 6, 7) if columns * bits == 32 * words), 0))


def _by_groups(
    q: Int[Tensor, "d_out d_in"], z: Shaped[Tensor, "..."], scale: Float[Tensor, "..."], group: Int[Tensor, " d_in"] | None
) -> Float[Tensor, "d_out d_in"]:
    """(q - z) s with one z and one s for each group of inputs: `group` of each input, else groups of equal size side by side."""

    def spread(one: Tensor) -> Tensor:
        if one.shape[1] == 1:
            return one.float()
        if group is not None:
            return one.float()[:, group.long()]
        return one.float().repeat_interleave(-(-q.shape[1] // one.shape[1]), 1)[:, : q.shape[1]]

    return (q.float() - spread(z)) * spread(scale)


def unpacked(words: Int[Tensor, "rows columns"], bits: int, axis: int) -> Int[Tensor, "rows columns"]:
    """Whole numbers of so many bits that lie one after the other in 32-bit words along an axis, the lowest bits first."""
    along = words.movedim(axis, -1)
    if 32 % bits == 0:
        numbers = torch.stack([((along >> shift) & (2**bits - 1)).to(torch.int16) for shift in range(0, 32, bits)], -1).flatten(-2)
    else:  # a number may lie in two words
        start = torch.arange(along.shape[-1] * 32 // bits) * bits
        first, shift = start // 32, start % 32
        wide = along.long() & 0xFFFFFFFF
        rest = torch.where(shift + bits > 32, wide[..., (first + 1).clamp(max=along.shape[-1] - 1)] << (32 - shift), 0)
        numbers = (((wide[..., first] >> shift) | rest) & (2**bits - 1)).to(torch.int16)
    return numbers.movedim(-1, axis)


def _columns_of_awq(words: Int[Tensor, "rows packed"]) -> Int[Tensor, "rows columns"]:
    numbers = unpacked(words, 4, 1).unflatten(-1, (-1, 8))
    return numbers[..., _AWQ].flatten(-2)


def powers(exponents: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Powers of two that bytes stand for, with bias 127."""
    return torch.ldexp(torch.ones(exponents.shape), exponents.int() - 127)


def _four_bit(codes: Shaped[Tensor, "d_out packed"], beside: Mapping[str, Tensor]) -> Float[Tensor, "d_out d_in"]:
    table = torch.tensor([*E2M1, *(-number for number in E2M1)])
    numbers = table[torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()]
    scale = powers(beside["scale"]) if beside["scale"].dtype == torch.uint8 else beside["scale"].float()
    if "factor" in beside:
        scale = scale * beside["factor"].float().reshape(())
    if "divisor" in beside:
        scale = scale / beside["divisor"].float().reshape(())
    return numbers * scale.repeat_interleave(numbers.shape[1] // scale.shape[1], 1)
