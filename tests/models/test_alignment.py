"""Tensors are put where torch puts its own, one by one, and whatever must stay is left."""

import pytest
import torch
from torch import Tensor, nn

from mechdiff.models.alignment import WIDTH, align, aligned
from mechdiff.models.pair import load_net, open_pair
from pico import pico, save
from tokenizers_made import byte_tokenizer


def astray(values: Tensor, offset: int = 4) -> Tensor:
    """The same numbers, `offset` bytes behind a multiple of 64."""
    room = torch.empty(values.numel() * values.element_size() + 2 * WIDTH, dtype=torch.uint8)
    start = -room.data_ptr() % WIDTH + offset
    found = room[start : start + values.numel() * values.element_size()].view(values.dtype).view(values.shape)
    found.copy_(values)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("offset", [8, 24, 48])
def test_what_lies_astray_is_moved_and_what_lies_well_is_the_same_tensor(dtype: torch.dtype, offset: int) -> None:
    values = torch.randn(5, 7).to(dtype)
    assert aligned(values) is values
    moved = aligned(astray(values, offset))
    assert moved.data_ptr() % WIDTH == 0
    assert torch.equal(moved, values)


def test_a_network_is_moved_in_place_and_what_was_shared_is_shared() -> None:
    shared = astray(torch.randn(6, 6))
    net = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("one", "two", "three", "four")})
    net["one"].weight = net["two"].weight = nn.Parameter(shared)  # one parameter
    net["three"].weight = nn.Parameter(shared)  # another parameter on the same numbers
    net.register_buffer("scale", astray(torch.randn(3)))
    well = net["four"].weight.data_ptr()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    align(net)
    assert all(tensor.data_ptr() % WIDTH == 0 for tensor in net.state_dict().values())
    assert net["one"].weight is net["two"].weight
    assert net["one"].weight.data_ptr() == net["three"].weight.data_ptr() != shared.data_ptr()
    assert net["four"].weight.data_ptr() == well, "what lies well is not copied"
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_codes_and_what_is_not_in_memory_stay_where_they_are() -> None:
    codes = nn.Parameter(astray(torch.zeros(8, 8, dtype=torch.uint8)), requires_grad=False)
    packed = nn.Parameter(astray(torch.randn(8, 8)), requires_grad=False)
    packed.quant_state = object()  # type: ignore[attr-defined]  # as bitsandbytes holds four bits in a float's storage
    net = nn.ParameterDict({"codes": codes, "packed": packed, "elsewhere": nn.Parameter(torch.empty(3, 3, device="meta"))})
    before = {name: tensor.data_ptr() for name, tensor in net.items()}
    align(net)
    assert {name: tensor.data_ptr() for name, tensor in net.items()} == before


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral"])
def test_every_tensor_of_a_loaded_model_lies_well_and_tied_ones_stay_tied(name, tmp_path) -> None:
    net = pico(name).net
    save(net, byte_tokenizer(), tmp_path)
    loaded = load_net(open_pair(str(tmp_path), str(tmp_path), device="cpu").base, dtype="float32", device=torch.device("cpu"))
    assert all(tensor.data_ptr() % WIDTH == 0 for tensor in (*loaded.parameters(), *loaded.buffers()) if tensor.is_floating_point())
    tied = loaded.get_input_embeddings().weight.data_ptr() == loaded.get_output_embeddings().weight.data_ptr()
    assert tied == (net.get_input_embeddings().weight is net.get_output_embeddings().weight)
