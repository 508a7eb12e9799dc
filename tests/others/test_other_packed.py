"""What compressed-tensors itself decodes from the forms that it writes (`make oracles`)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mechdiff.models.tensors import open_tensors

pytestmark = pytest.mark.oracles

LAYER = "model.layers.0.mlp.up_proj"
INT = {"type": "int", "strategy": "group", "group_size": 32}
FLOAT = {"type": "float", "symmetric": True}


def groups(matrix: Tensor, size: int) -> Tensor:
    return matrix.unflatten(1, (-1, size))


def given(matrix: Tensor, form: str, args: dict[str, Any]) -> dict[str, Tensor]:
    """The scales and zeros that the library is given with a matrix."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    if form == "nvfp4-pack-quantized":
        whole = 448 * 6 / matrix.abs().max().reshape(1)
        scale = (groups(matrix, 16).abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn).float()
        return {"weight_scale": scale, "weight_global_scale": whole}
    if form.startswith("mxfp"):
        most = 6 if "4" in form else 448
        return {"weight_scale": (groups(matrix, 32).abs().amax(-1) / most).log2().ceil().exp2()}
    if args.get("strategy") == "block":
        return {"weight_scale": matrix.reshape(2, 32, 3, 32).abs().amax((1, 3)) / 448}
    size = {"group": 32, "channel": matrix.shape[1]}.get(args["strategy"])
    parts = groups(matrix, size) if size else matrix.reshape(1, 1, -1)
    scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), QuantizationArgs(**args))
    if not size:
        scale, zero = scale.reshape(1), zero.reshape(1)
    return {"weight_scale": scale, "weight_zero_point": zero}


@pytest.mark.parametrize(
    ("form", "args"),
    [
        *[("pack-quantized", {**INT, "num_bits": bits, "symmetric": symmetric}) for bits in (2, 3, 4, 8) for symmetric in (True, False)],
        *[("int-quantized", {"type": "int", "num_bits": 8, "symmetric": symmetric, "strategy": "channel"}) for symmetric in (True, False)],
        *[("float-quantized", {**FLOAT, "num_bits": 8, "strategy": strategy}) for strategy in ("channel", "tensor")],
        ("float-quantized", {**FLOAT, "num_bits": 8, "strategy": "block", "block_structure": [32, 32]}),
        ("nvfp4-pack-quantized", {**FLOAT, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
        ("mxfp4-pack-quantized", {**FLOAT, "num_bits": 4, "strategy": "group", "group_size": 32}),
        ("mxfp8-quantized", {**FLOAT, "num_bits": 8, "strategy": "group", "group_size": 32}),
    ],
)
def test_what_the_library_packs_is_read_as_it_unpacks_it(tmp_path: Path, form: str, args: dict[str, Any]) -> None:
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    torch.manual_seed(0)
    matrix = torch.randn(64, 96)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    library = BaseCompressor.get_value_from_registry(form)
    held = library.compress({"weight": matrix.clone(), **given(matrix, form, args)}, scheme)
    wanted = library.decompress(dict(held), scheme)["weight"]
    stated = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": args}}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": stated}))
    save_file({f"{LAYER}.{name}": tensor.contiguous() for name, tensor in held.items()}, tmp_path / "model.safetensors")
    found = open_tensors(tmp_path).read(f"{LAYER}.weight")
    torch.testing.assert_close(found.to(wanted.dtype), wanted, rtol=0, atol=0)
