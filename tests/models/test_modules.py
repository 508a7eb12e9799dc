"""Every tensor has one unit, a change of one bit is found, and a matrix's change cut to its rank is the change."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from mechdiff.errors import ModelError
from mechdiff.models.modules import (
    KINDS,
    Unit,
    changes_between,
    changes_of,
    changes_of_adapter,
    factors,
    parts,
    tensors_in,
    tensors_of,
    unit_at,
)
from mechdiff.models.pair import open_pair, wrap
from oracles.merged import names_of
from pico import CONFIGS, each, make_net, moved, pico, save, twin, with_adapter
from tokenizers_made import byte_tokenizer


@pytest.mark.parametrize("name", each())
def test_every_tensor_has_the_unit_that_its_name_says(name):
    model = pico(name)
    found = parts(model)
    assert set(found) == {name for name, _ in model.net.named_parameters(remove_duplicate=False)}
    tied = {"lm_head.weight"} if model.net.config.tie_word_embeddings else set()
    for unit in sorted(set(found.values())):
        assert {name for name, other in found.items() if other == unit} - tied == set(names_of(model.net, str(unit))) - tied
    assert {name: found[name] for name in tied} == dict.fromkeys(tied, Unit("embed"))
    kinds = {"embed", "attn", "mlp", "norm", "final_norm"} | ({"head"} if not tied else set())
    assert {unit.kind for unit in found.values()} == kinds - ({"norm", "final_norm"} if name == "olmo" else set())


def test_units_sort_in_network_order():
    units = [
        Unit("embed"),
        *[Unit(kind, layer) for layer in (0, 1, 10) for kind in ("attn", "mlp", "norm")],
        Unit("final_norm"),
        Unit("head"),
    ]
    assert sorted(units, key=str) != units
    assert sorted(sorted(units, key=str)) == units
    assert [str(unit) for unit in units[:2]] == ["embed", "L0.attn"]
    assert [unit.first(12) for unit in (units[0], units[5], units[-1])] == [-1, 1, 12]


def test_a_family_row_that_misses_a_matrix_is_refused():
    model = pico("llama")
    model.blocks[1].register_module("adapter", nn.Linear(32, 32))
    with pytest.raises(ModelError, match=r"model.layers.1.adapter.weight has shape \(32, 32\).*does not fit"):
        parts(model)


@pytest.mark.parametrize("name", each())
def test_all_units_of_a_model_that_moved_everywhere_have_changed(name):
    model = pico(name)
    found = changes_between(model, tensors_of(twin(model, moved)))
    assert list(found.units) == sorted(set(parts(model).values()))
    assert {tensor for names in found.names.values() for tensor in names} == set(parts(model))
    assert found.record() == {"changed_units": [str(unit) for unit in found.units], "as": "tuned tensors"}


def test_p0_nothing_changed():
    model = pico("llama")
    assert changes_between(model, tensors_of(twin(model))).units == ()


def test_one_bit_is_a_change():
    model = pico("gpt2")

    def one_bit(net: nn.Module) -> None:
        weight = net.transformer.h[2].attn.c_attn.weight.data
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))

    found = changes_between(model, tensors_of(twin(model, one_bit)))
    assert found.names == {Unit("attn", 2): ("transformer.h.2.attn.c_attn.weight",)}


def test_a_head_that_the_tuned_model_has_untied_is_a_unit_of_its_own():
    base = pico("smollm3")

    def untie(net: nn.Module) -> None:
        net.lm_head.weight = nn.Parameter(net.lm_head.weight + 0.1)

    assert changes_between(base, tensors_of(twin(base, untie))).units == (Unit("head"),)
    assert changes_between(twin(base, untie), tensors_of(base)).units == (Unit("head"),)


def test_other_shapes_and_other_architectures_are_refused():
    config = CONFIGS["llama"]()
    config.vocab_size += 32
    wider = wrap(make_net(config), side="tuned", ref="wider")
    with pytest.raises(ModelError, match=r"embed_tokens.weight has shape \(259, 32\), the tuned model's \(291, 32\)"):
        changes_between(pico("llama"), tensors_of(wider))
    with pytest.raises(ModelError, match=r"has no tensor model\.layers\.0\.self_attn\.q_proj\.bias"):
        changes_between(pico("qwen2"), tensors_of(pico("llama")))


# ---- from a pair, and from files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "smollm3"])
@pytest.mark.parametrize("memory", ["both", "one"])
def test_a_pair_says_what_changed_whether_both_fit_into_memory_or_one(tmp_path: Path, name, memory):
    base = pico(name)

    def change(net: nn.Module) -> None:
        for path in ("model.layers.1.mlp.up_proj", "model.embed_tokens"):
            net.get_submodule(path).weight.mul_(1.1)

    tuned = twin(base, change)
    save(base.net, byte_tokenizer(), tmp_path / "base")
    save(tuned.net, byte_tokenizer(), tmp_path / "tuned")
    pair = open_pair(str(tmp_path / "base"), str(tmp_path / "tuned"), device="cpu", memory=memory)
    with pair.use("base") as model:
        found = changes_of(pair, model)
        assert found.units == (Unit("embed"), Unit("mlp", 1))
        assert (found.base is None) == (memory == "both")
        for names in found.names.values():
            for tensor in names:
                assert torch.equal(found.tuned(tensor), tuned.net.get_parameter(tensor))


def test_files_that_name_things_otherwise_are_refused(tmp_path: Path):
    save(pico("llama").net, byte_tokenizer(), tmp_path)
    with pytest.raises(ModelError, match=r"no tensor transformer\.wpe\.weight in its files"):
        tensors_in(tmp_path, pico("gpt2"))("transformer.wpe.weight")


# ---- adapters ----------------------------------------------------------------------------------------------------------------------


def test_p5_the_units_of_a_lora_are_its_layers():
    found = changes_of_adapter(with_adapter(layers_to_transform=[1, 2]))
    assert [str(unit) for unit in found.units] == ["L1.attn", "L1.mlp", "L2.attn", "L2.mlp"]
    assert found.record()["as"] == "adapter layers"


def test_lora_layers_at_zero_change_nothing_and_saved_modules_do():
    base = with_adapter(modules_to_save=["lm_head"], layers_to_transform=[2])
    for layer in changes_of_adapter(base).switches[Unit("mlp", 2)]:
        layer.lora_B["default"].weight.data.zero_()
    found = changes_of_adapter(base)
    assert found.units == (Unit("attn", 2), Unit("head"))
    with pytest.raises(ModelError, match="ModulesToSaveWrapper is no product of two factors"):
        factors(base, found, Unit("head"))


@pytest.mark.parametrize(("name", "target", "transposed"), [("llama", "o_proj", False), ("gpt2", "c_proj", True)])
def test_the_factors_of_a_lora_multiply_to_its_change(name, target, transposed):
    base = with_adapter(name, target_modules=[target], fan_in_fan_out=transposed, r=3)
    found = changes_of_adapter(base)
    for unit in found.units:
        for name, change in factors(base, found, unit).items():
            expected = base.net.get_submodule(name.removesuffix(".base_layer.weight")).get_delta_weight("default")
            assert change.full == 3
            torch.testing.assert_close(change.cut(3), expected, rtol=1e-4, atol=1e-5)
            u, s, v = torch.linalg.svd(expected)
            torch.testing.assert_close(change.cut(1), u[:, :1] * s[0] @ v[:1], rtol=1e-4, atol=1e-5)
            assert base.net.get_parameter(name).shape == expected.shape


# ---- factors of dense changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rank_of_a_merged_low_rank_change_is_found_under_its_rounding(dtype):
    base = pico("llama", dtype=dtype)

    def merge(net: nn.Module) -> None:
        torch.manual_seed(1)
        weight = net.model.layers[1].mlp.up_proj.weight
        weight.copy_((weight.float() + torch.randn(48, 3) @ torch.randn(3, 32) * 0.1).to(dtype))

    found = changes_between(base, tensors_of(twin(base, merge)))
    (change,) = factors(base, found, Unit("mlp", 1)).values()
    assert change.full == 3


def test_experts_have_factors_side_by_side_and_vectors_have_none():
    base = pico("gpt_oss")
    tuned = twin(base, moved)
    found = changes_between(base, tensors_of(tuned))
    changes = factors(base, found, Unit("mlp", 2))
    own, new = (model.net.get_parameter("model.layers.2.mlp.experts.down_proj").detach() for model in (base, tuned))
    change = changes["model.layers.2.mlp.experts.down_proj"]
    assert change.left.shape[:-1] == own.shape[:-1]
    torch.testing.assert_close(change.cut(change.full), new - own, rtol=0, atol=1e-5)
    assert set(changes) == {name for name in found.names[Unit("mlp", 2)] if base.net.get_parameter(name).ndim > 1}
    assert factors(base, found, Unit("norm", 2)) == {}


def test_unit_kinds_are_those_of_the_row_contract():
    assert {unit_at(pico("llama").family, name).kind for name in parts(pico("llama"))} == set(KINDS)
    assert copy.copy(Unit("attn", 1)) == Unit("attn", 1)
