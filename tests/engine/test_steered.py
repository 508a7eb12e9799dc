"""Runs under edits at every position: against whole hooked passes one at a time, for each kind of family."""

import pytest
import torch
from torch import Tensor

import pico
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture, edited, forward
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import ENGINES, Write
from mechdiff.engine.steered import Changes, apply, opening, steered, steering
from mechdiff.models.pair import Model

FAMILIES = ("llama", "qwen2_sliding", "gemma2", "gpt2", "mixtral", "falcon_alibi", "bloom", "lfm2", "granite", "olmoe")


def direction(seed: int) -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def variants() -> list[Changes]:
    def double(states: Tensor) -> Tensor:
        return states

    def remove(states: Tensor) -> Tensor:
        return -(states @ direction(1))[:, None] * direction(1) / direction(1).norm() ** 2

    return [
        {Site(3, "resid_post"): double},
        {Site(1, "resid_post"): lambda states: direction(2).expand_as(states)},
        {Site(1, "mlp_out"): remove, Site(2, "mlp_out"): remove},
    ]


def prompts(n: int = 3, shared: int = 6) -> list[Tensor]:
    return [torch.tensor([256, *range(40, 39 + shared), *ids[1:]]) for ids in pico.prompts(n)]


def slowly(model: Model, ids: Tensor, changes: Changes) -> Tensor:
    def edit(change):  # type: ignore[no-untyped-def]
        def add(tensor: Tensor) -> None:
            tensor.add_(change(tensor[0].double()).to(tensor))

        return add

    with edited(model, {site: edit(change) for site, change in changes.items()}):
        return forward(model, ids[None], use_cache=False, logits_to_keep=0).logits[0].float()


@pytest.mark.parametrize("family", FAMILIES)
def test_side_by_side_is_one_at_a_time(family: str) -> None:
    model, texts = pico.pico(family), prompts()
    shared = opening(model.config, texts)
    assert shared == (0 if family in pico.RELAYED else 6)
    for ids, found in zip(texts, steered(model, texts, variants()), strict=True):
        assert found.shape == (4, len(ids) - shared, 259)
        for row, changes in enumerate(({}, *variants())):
            torch.testing.assert_close(found[row], slowly(model, ids, changes)[shared:], atol=2e-4, rtol=1e-4)
    last = list(steered(model, texts, variants(), whole=False))
    whole = list(steered(model, texts, variants()))
    for short, long in zip(last, whole, strict=True):
        torch.testing.assert_close(short, long[:, -1:], atol=1e-4, rtol=1e-4)


def test_no_change_is_no_change() -> None:
    """The edit leaves every bit; rows of one pass stand in other places of its matrices, so their laws agree to rounding."""
    states = torch.randn(5, 32)
    before = states.clone()
    apply(states, torch.zeros_like)
    assert torch.equal(states, before)
    model, texts = pico.pico("llama"), prompts()
    nothing: list[Changes] = [{Site(layer, "resid_post"): torch.zeros_like} for layer in range(4)]
    for found in steered(model, texts, nothing):
        assert float(kl_nats(found[:1].expand_as(found), found).max()) < 1e-10


def test_a_constant_added_everywhere_is_what_relay_writes() -> None:
    model, (ids,) = pico.pico("llama"), prompts(1)
    clean = capture(model, ids.tolist(), [], [0])
    write = Write(value=direction(2).float().expand(1, len(ids), -1), add=True)
    there = ENGINES["relay"](model, [clean], [{Site(1, "resid_post"): write}])
    ((found),) = steered(model, [ids], [variants()[1]], whole=False)
    torch.testing.assert_close(found[:, 0], there[0], atol=1e-5, rtol=1e-5)


def test_what_prompts_open_with() -> None:
    model = pico.pico("llama")
    assert opening(model.config, prompts(1)) == 0, "one prompt shares with nobody"
    short = [torch.tensor([256, 1, 2, 3]), torch.tensor([256, 1, 2, 3, 4])]
    assert opening(model.config, short) == 2, "two tokens of each are its own"
    assert opening(model.config, [torch.tensor([256, 1, 2]), torch.tensor([255, 1, 2])]) == 0
    assert opening(model.config, [torch.tensor([256]), torch.tensor([256, 1])]) == 0


def test_generation_is_steered_at_every_token_and_the_hooks_go() -> None:
    model, ids = pico.pico("llama"), prompts(1)[0]
    change: Changes = {Site(2, "resid_post"): lambda states: 3 * direction(3).expand_as(states)}
    before = forward(model, ids[None], use_cache=False).logits
    with steering(model, change), torch.inference_mode():
        said = model.net.generate(  # type: ignore[operator]
            ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=5, do_sample=False, pad_token_id=258, eos_token_id=None
        )[0]
    for end in range(len(ids), len(said)):
        assert int(slowly(model, said[:end], change)[-1].argmax()) == int(said[end])
    assert torch.equal(forward(model, ids[None], use_cache=False).logits, before)
