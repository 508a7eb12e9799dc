"""A grafted network is the merged network, wherever its pass starts, and afterwards not a bit of the base has moved."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechdiff.engine.activations import capture
from mechdiff.engine.grafts import batches, grafted, resume, trace, truncated
from mechdiff.models.modules import ChangedUnits, Unit, changes_between, changes_of, changes_of_adapter, factors, tensors_of
from mechdiff.models.pair import Model, open_pair
from oracles.merged import logits as naive
from oracles.merged import merged
from pico import each, moved, pico, prompts, save, twin, with_adapter
from tokenizers_made import byte_tokenizer

PROMPTS = prompts(4, seed=2, shortest=4, longest=22)
"""Some shorter and some longer than the pico models' sliding window of 8."""
CLOSE = {"rtol": 0, "atol": 2e-5}
"""Float32 logits of size 10, in other matrix shapes."""
SETS = (["L2.attn"], ["L1.mlp", "L3.norm"], ["L0.norm", "L1.attn"], ["final_norm"], ["head"], ["embed"], ["embed", "L2.mlp", "final_norm"])


@cache
def pair(name: str) -> tuple[Model, Model, ChangedUnits]:
    base = pico(name)
    tuned = twin(base, moved)
    return base, tuned, changes_between(base, tensors_of(tuned))


def named(changes: ChangedUnits, names: Sequence[str]) -> list[Unit]:
    return [unit for unit in changes.units if str(unit) in names]


def bits(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.net.named_parameters(remove_duplicate=False)}


def in_order(model: Model, found: Sequence[Tensor], packed: Sequence) -> Tensor:
    rows = torch.tensor([row for batch in packed for row in batch.rows])
    return torch.cat(list(found))[rows.argsort()]


@pytest.mark.parametrize("name", each())
def test_a_graft_is_the_merged_network_from_whichever_block_it_starts(name):
    base, tuned, changes = pair(name)
    packed = batches(base, PROMPTS, max_tokens=48)
    assert 1 < len(packed) < len(PROMPTS)
    clean = [trace(base, batch) for batch in packed]
    torch.testing.assert_close(in_order(base, [one.logits for one in clean], packed), naive(base.net, PROMPTS), **CLOSE)
    for names in SETS:
        units = named(changes, names)
        if not units:  # a tied head is no unit
            continue
        expected = naive(merged(base.net, tuned.net, names), PROMPTS)
        lowest = min(unit.first(4) for unit in units)
        assert (expected - naive(base.net, PROMPTS)).abs().max() > 1e-3
        with grafted(base, changes, units):
            whole = [trace(base, batch).logits for batch in packed]
            torch.testing.assert_close(in_order(base, whole, packed), expected, **CLOSE)
            for start in range(lowest + 1):
                found = [resume(base, batch, one, start) for batch, one in zip(packed, clean, strict=True)]
                torch.testing.assert_close(in_order(base, found, packed), expected, **CLOSE)
    assert "forward" not in base.blocks[0].__dict__
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in base.net.modules())


@pytest.mark.parametrize("name", each())
def test_everything_grafted_is_the_tuned_model_to_the_bit(name):
    base, tuned, changes = pair(name)
    (batch,) = batches(base, PROMPTS[:1])
    with grafted(base, changes, changes.units):
        found = trace(base, batch)
    expected = trace(tuned, batch)
    assert torch.equal(found.logits, expected.logits)
    assert all(torch.equal(a, b) for a, b in zip(found.residuals, expected.residuals, strict=True))
    assert not torch.equal(trace(base, batch).logits, expected.logits)


def test_a_trace_is_the_forward_pass():
    base, _, _ = pair("gemma2")
    packed = batches(base, PROMPTS)
    found = in_order(base, [trace(base, batch).logits for batch in packed], packed)
    torch.testing.assert_close(found, torch.stack([capture(base, ids, [], [0]).logits for ids in PROMPTS]), **CLOSE)


def test_packing_is_a_function_of_the_prompts():
    base, _, _ = pair("llama")
    packed = batches(base, [[1] * n for n in (5, 3, 30, 4, 2)], max_tokens=12)
    assert [batch.rows for batch in packed] == [[4, 1, 3], [0], [2]]
    assert [batch.ids.shape[1] for batch in packed] == [4, 5, 30]
    assert packed[0].last.tolist() == [1, 2, 3]


# ---- not a bit of the base has moved -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True], ids=["normal", "error"])
@pytest.mark.parametrize("name", ["llama", "smollm3", "gpt2"])
def test_the_base_is_put_back_to_the_bit(name, fails):
    base, _, changes = pair(name)
    before, same = bits(base), {name: id(tensor) for name, tensor in base.net.named_parameters(remove_duplicate=False)}
    (batch,) = batches(base, PROMPTS[:1])
    clean = trace(base, batch)
    cut = {unit: factors(base, changes, unit) for unit in changes.units}
    for weights in (grafted(base, changes, changes.units), truncated(base, changes, cut, 2)):
        try:
            with weights:
                assert any(not torch.equal(tensor, before[name]) for name, tensor in bits(base).items())
                if fails:
                    resume(base, batch, clean, 99)
        except IndexError:
            assert fails
        assert {name: id(tensor) for name, tensor in base.net.named_parameters(remove_duplicate=False)} == same
        assert all(torch.equal(tensor, before[name]) for name, tensor in bits(base).items())
    assert torch.equal(trace(base, batch).logits, clean.logits)


def test_a_pass_that_fails_leaves_no_block_skipped():
    base, _, _ = pair("llama")
    (batch,) = batches(base, PROMPTS[:1])
    clean = trace(base, batch)
    broken = type(clean)(residuals=[state[..., :-1] for state in clean.residuals], logits=clean.logits, form=clean.form)
    with pytest.raises(RuntimeError):
        resume(base, batch, broken, 2)
    assert torch.equal(trace(base, batch).logits, clean.logits)


def test_a_block_whose_forward_was_replaced_keeps_the_replacement():
    """As libraries do that spread a model over devices."""
    base = pico("llama")
    own, calls = base.blocks[0].forward, []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return own(*args, **kwargs)

    base.blocks[0].forward = counted
    (batch,) = batches(base, PROMPTS[:1])
    resume(base, batch, trace(base, batch), 2)
    assert len(calls) == 1
    assert base.blocks[0].forward is counted


@pytest.mark.parametrize("name", ["llama", "smollm3"])
def test_weights_read_from_files_do_the_same(tmp_path: Path, name):
    base, tuned, changes = pair(name)
    for model, folder in ((base, "base"), (tuned, "tuned")):
        save(model.net, byte_tokenizer(), tmp_path / folder)
    opened = open_pair(str(tmp_path / "base"), str(tmp_path / "tuned"), device="cpu", memory="one")
    with opened.use("base") as model:
        read = changes_of(opened, model)
        assert read.units == changes.units
        before = bits(model)
        (batch,) = batches(model, PROMPTS[:1])
        with grafted(model, read, read.units):
            assert torch.equal(trace(model, batch).logits, trace(tuned, batch).logits)
        assert all(torch.equal(tensor, before[name]) for name, tensor in bits(model).items())
        assert (model.net.lm_head.weight is model.net.model.embed_tokens.weight) == (name == "smollm3")


# ---- adapters and truncation -------------------------------------------------------------------------------------------------------


def test_p5_an_adapters_layers_are_switched_on_one_by_one():
    base = with_adapter()
    changes = changes_of_adapter(base)
    (batch,) = batches(base, PROMPTS[:1])
    clean = trace(base, batch).logits
    plain = pico("llama")
    assert torch.equal(clean, trace(plain, batch).logits)
    chosen = named(changes, ["L1.attn", "L2.mlp"])

    def merge(net: torch.nn.Module) -> None:
        for name in ("1.self_attn.o_proj", "2.mlp.up_proj"):
            net.model.layers.get_submodule(name).weight.add_(base.net.model.layers.get_submodule(name).get_delta_weight("default"))

    expected = trace(twin(plain, merge), batch).logits
    with grafted(base, changes, chosen):
        torch.testing.assert_close(trace(base, batch).logits, expected, **CLOSE)
    with truncated(base, changes, {unit: factors(base, changes, unit) for unit in chosen}, 2):
        torch.testing.assert_close(trace(base, batch).logits, expected, **CLOSE)
    with pytest.raises(ZeroDivisionError), grafted(base, changes, chosen):
        1 / 0
    assert torch.equal(trace(base, batch).logits, clean)
    for layers in changes.switches.values():
        for layer in layers:
            layer.enable_adapters(True)
    everything = trace(base, batch).logits
    for layers in changes.switches.values():
        for layer in layers:
            layer.enable_adapters(False)
    with grafted(base, changes, changes.units):
        assert torch.equal(trace(base, batch).logits, everything)


def test_a_module_that_an_adapter_saved_whole_is_switched_like_its_layers():
    base = with_adapter(modules_to_save=["lm_head"], layers_to_transform=[1])
    changes = changes_of_adapter(base)
    (batch,) = batches(base, PROMPTS[:1])
    clean = trace(base, batch)
    with grafted(base, changes, [Unit("head")]):
        torch.testing.assert_close(resume(base, batch, clean, 4), trace(base, batch).logits, **CLOSE)
        own, saved = (base.net.lm_head.original_module.weight, base.net.lm_head.modules_to_save["default"].weight)
        state = base.net.model.norm(clean.residuals[4])[0, -1]
        torch.testing.assert_close(resume(base, batch, clean, 4)[0], state @ saved.T, **CLOSE)
    assert torch.equal(trace(base, batch).logits, clean.logits)
    assert not torch.equal(own, saved)


def test_a_change_cut_to_a_rank_is_the_base_plus_its_first_singular_vectors():
    base, tuned, changes = pair("llama")
    unit = Unit("attn", 1)
    cut = {unit: factors(base, changes, unit)}
    name = "model.layers.1.self_attn.q_proj.weight"
    own, new = base.net.get_parameter(name).detach(), tuned.net.get_parameter(name).detach()
    u, s, v = torch.linalg.svd(new - own, full_matrices=False)
    for rank in (1, 5):
        with truncated(base, changes, cut, rank):
            torch.testing.assert_close(base.net.get_parameter(name).detach(), own + u[:, :rank] * s[:rank] @ v[:rank], **CLOSE)
    with truncated(base, changes, cut, 32):
        torch.testing.assert_close(base.net.get_parameter(name).detach(), new, rtol=0, atol=1e-6)
