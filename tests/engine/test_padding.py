"""P18: padding on the left moves no law above the floor, if positions are given as they are without it."""

import pytest
import torch

from mechdiff.engine.distributions import kl_nats
from pico import pico, prompts


@pytest.mark.parametrize(
    ("name", "dtype", "floor"),
    [("llama", torch.float32, 3e-12), ("gpt2", torch.float32, 3e-12), ("llama", torch.bfloat16, 2e-3)],
)
@torch.inference_mode()
def test_p18_padding_on_the_left_changes_nothing(name: str, dtype: torch.dtype, floor: float) -> None:
    """With rotary positions as it is, with learned ones by explicit position ids: without them the prompt would be read in another place."""
    model = pico(name, dtype=dtype)
    ids = torch.tensor([prompts(1, seed=5)[0]])
    padded, mask = torch.cat([torch.full((1, 4), 258), ids], 1), torch.cat([torch.zeros(1, 4), torch.ones_like(ids)], 1).long()
    plain = model.net(ids).logits[:, -1].float()
    placed = model.net(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1].float()
    assert kl_nats(placed, plain).max() <= floor
    if dtype == torch.float32:
        misplaced = model.net(padded, attention_mask=mask, position_ids=torch.arange(padded.shape[1])[None]).logits[:, -1].float()
        assert (kl_nats(misplaced, plain).max() > 1e-6) == (name == "gpt2"), "only learned positions mind"
