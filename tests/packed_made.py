"""Checkpoints in the packed forms that other quantisers publish, written entry by entry as their papers and packages say, and what they stand for.

Each function turns one matrix into (the tensors that a file holds for it, the matrix that they mean, by a loop over entries).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 16
_E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
_AWQ = [0, 2, 4, 6, 1, 3, 5, 7]
Made = tuple[dict[str, Tensor], Tensor]


def _word(fields: list[tuple[int, int]]) -> int:
    """A 32-bit word (as a signed number) with each value at its bit."""
    word = sum(value << bit for value, bit in fields) & 0xFFFFFFFF
    return word - (1 << 32) if word >= 1 << 31 else word


def _drawn(matrix: Tensor, bits: int, *, zeros: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], zeros [out, groups] and float16 scales [out, groups] near a matrix."""
    groups = matrix.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    levels = 2**bits - 1
    if not zeros:
        high = groups.abs().amax(-1)
        low = -high
    scale = ((high - low) / levels).clamp(min=1e-4).half()
    zero = (-low / scale.float()).round().clamp(1, levels) if zeros else torch.full(low.shape, 2.0 ** (bits - 1))
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, levels).flatten(1)
    return codes.int(), zero.int(), scale


def _meant(codes: Tensor, zero: Tensor, scale: Tensor, group: list[int] | None = None) -> Tensor:
    found = torch.zeros(codes.shape)
    for out in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            g = group[column] if group else column // GROUP
            found[out, column] = (int(codes[out, column]) - int(zero[out, g])) * float(scale[out, g])
    return found


def gptq(matrix: Tensor, *, bits: int = 4, v2: bool = False, shuffled: bool = False) -> Made:
    """`shuffled`: inputs belong to groups in another order (desc_act)."""
    codes, zero, scale = _drawn(matrix, bits, zeros=True)
    n = matrix.shape[1]
    group = [(i * 7) % (n // GROUP) for i in range(n)] if shuffled else [i // GROUP for i in range(n)]
    stored = zero if v2 else zero - 1

    def stream(values: list[int]) -> list[int]:
        """Numbers one after the other in words, across their borders where the bits do not fill them."""
        whole = sum(int(value) << (bits * i) for i, value in enumerate(values))
        return [_word([((whole >> (32 * i)) & 0xFFFFFFFF, 0)]) for i in range(-(-len(values) * bits // 32))]

    tensors = {
        "qweight": torch.tensor([stream(row.tolist()) for row in codes], dtype=torch.int32).T.contiguous(),
        "qzeros": torch.tensor([stream(column.tolist()) for column in stored.T], dtype=torch.int32),
        "scales": scale.T.contiguous(),
        "g_idx": torch.tensor(group, dtype=torch.int32),
    }
    return tensors, _meant(codes, zero, scale, group)


def awq(matrix: Tensor) -> Made:
    codes, zero, scale = _drawn(matrix, 4, zeros=True)

    def rows(values: Tensor) -> Tensor:
        return torch.tensor(
            [[_word([(int(row[8 * word + _AWQ[i]]), 4 * i) for i in range(8)]) for word in range(len(row) // 8)] for row in values],
            dtype=torch.int32,
        )

    return {"qweight": rows(codes.T), "qzeros": rows(zero.T), "scales": scale.T.contiguous()}, _meant(codes, zero, scale)


def packed(matrix: Tensor, *, bits: int = 4, zeros: bool = False) -> Made:
    """compressed-tensors, pack-quantized."""
    codes, zero, scale = _drawn(matrix, bits, zeros=zeros)
    each = 32 // bits

    def rows(values: Tensor) -> Tensor:
        wide = torch.nn.functional.pad(values, (0, -values.shape[1] % each))
        return torch.tensor(
            [
                [_word([(int(row[each * word + i]), bits * i) for i in range(each)]) for word in range(wide.shape[1] // each)]
                for row in wide
            ],
            dtype=torch.int32,
        )

    tensors = {"weight_packed": rows(codes), "weight_scale": scale, "weight_shape": torch.tensor(matrix.shape)}
    if zeros:
        tensors["weight_zero_point"] = rows(zero.T).T.contiguous()
    return tensors, _meant(codes, zero, scale)


def whole(matrix: Tensor) -> Made:
    """compressed-tensors, int-quantized: a scale a row."""
    scale = matrix.abs().amax(1, keepdim=True) / 127
    codes = (matrix / scale).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.ones(1)}, torch.tensor(
        [[int(one) * float(scale[i]) for one in row] for i, row in enumerate(codes)]
    )


def floats(matrix: Tensor, *, group: bool = False) -> Made:
    """compressed-tensors, float-quantized: E4M3 with a scale a row, or a group of inputs."""
    size = GROUP if group else matrix.shape[1]
    scale = matrix.unflatten(1, (-1, size)).abs().amax(-1) / 448
    codes = (matrix / scale.repeat_interleave(size, 1)).to(torch.float8_e4m3fn)
    meant = torch.tensor([[float(one) * float(scale[i, j // size]) for j, one in enumerate(row)] for i, row in enumerate(codes.float())])
    return {"weight": codes, "weight_scale": scale, "input_scale_ub": torch.ones(1)}, meant


def nvfp4(matrix: Tensor, *, modelopt: bool = False) -> Made:
    table = torch.tensor(_E2M1)
    groups = matrix.unflatten(1, (-1, 16))
    factor = float(matrix.abs().max()) / (6 * 448)
    scale = (groups.abs().amax(-1) / 6 / factor).to(torch.float8_e4m3fn)
    spread = (scale.float() * factor).clamp(min=1e-12).repeat_interleave(16, 1)
    lower = (matrix.abs() / spread)[..., None].sub(table).abs().argmin(-1)
    sign = (matrix < 0).int()
    code = lower + 8 * sign
    tensors = {
        "weight" if modelopt else "weight_packed": (code[:, 0::2] | (code[:, 1::2] << 4)).to(torch.uint8),
        "weight_scale": scale,
        "weight_scale_2" if modelopt else "weight_global_scale": torch.tensor(factor if modelopt else 1 / factor),
    }
    if modelopt:
        tensors["input_scale"] = torch.tensor(0.5)
    kept = float(tensors.get("weight_scale_2", 1 / tensors["weight_global_scale"]) if not modelopt else tensors["weight_scale_2"])
    meant = torch.zeros(matrix.shape)
    for out in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            number = _E2M1[int(code[out, column]) & 7] * (-1 if int(code[out, column]) & 8 else 1)
            meant[out, column] = number * float(scale[out, column // 16].float()) * kept
    return tensors, meant


def mxfp(matrix: Tensor, *, bits: int) -> Made:
    """compressed-tensors, mxfp4-pack-quantized or mxfp8-quantized: a power of two a group of 32 inputs, as a byte."""
    most = 6.0 if bits == 4 else 448.0
    exponent = (matrix.unflatten(1, (-1, 32)).abs().amax(-1) / most).log2().ceil()
    spread = exponent.exp2().repeat_interleave(32, 1)
    if bits == 8:
        codes = (matrix / spread).to(torch.float8_e4m3fn)
        numbers = codes.float()
    else:
        lower = (matrix.abs() / spread)[..., None].sub(torch.tensor(_E2M1)).abs().argmin(-1)
        code = lower + 8 * (matrix < 0).int()
        codes = (code[:, 0::2] | (code[:, 1::2] << 4)).to(torch.uint8)
        numbers = torch.tensor([[_E2M1[int(one) & 7] * (-1 if int(one) & 8 else 1) for one in row] for row in code])
    meant = torch.tensor([[float(one) * 2 ** float(exponent[i, j // 32]) for j, one in enumerate(row)] for i, row in enumerate(numbers)])
    return {"weight" if bits == 8 else "weight_packed": codes, "weight_scale": (exponent + 127).to(torch.uint8)}, meant


def quantise(folder: Path, form: Callable[[Tensor], Made], config: dict[str, Any]) -> dict[str, Tensor]:
    """Holds every matrix of a saved model's blocks in a form. What each tensor of the network then means, by name."""
    path = folder / "model.safetensors"
    state, held, meant = load_file(path), {}, {}
    for name, tensor in state.items():
        if "_proj.weight" not in name:
            held[name] = meant[name] = tensor
            continue
        tensors, meant[name] = form(tensor)
        held |= {f"{name.removesuffix('weight')}{part}": one for part, one in tensors.items()}
    save_file(held, path, metadata={"format": "pt"})
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "quantization_config": config}))
    return meant
