"""Parent and child are told from strangers by their weights, and what the tuned model says of itself is believed only with a warning."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig

from mechdiff.errors import ModelError
from mechdiff.models.lineage import lineage, stated_base
from mechdiff.models.sources import Source, resolve
from pico import CONFIGS, SIZES, make_net, pico, save, twin
from tokenizers_made import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
"""peft's get_peft_model asks transformers for something by its old name."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return saved(pico("llama").net, tmp_path_factory.mktemp("models") / "base")


def saved(net: nn.Module, folder: Path) -> Source:
    return resolve(str(save(net, byte_tokenizer(), folder)))


def edited(change: Callable[[nn.Module], None], folder: Path) -> Source:
    return saved(twin(pico("llama"), change).net, folder)


def one_matrix(net: nn.Module) -> None:
    weight = net.get_submodule("model.layers.1.self_attn.o_proj").weight
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.01)


def naive_distance(base: nn.Module, tuned: nn.Module) -> float:
    pairs = list(zip(base.state_dict().values(), tuned.state_dict().values(), strict=True))
    moved, size = torch.cat([(b - a).flatten() for a, b in pairs]), torch.cat([a.flatten() for a, _ in pairs])
    return float(moved.norm() / size.norm())


# ---- weights -----------------------------------------------------------------------------------------------------------------------


def test_the_same_weights_are_warned_of(base, tmp_path):
    found = lineage(base, saved(pico("llama").net, tmp_path / "copy"))
    assert found["relative_distance"] == 0
    assert (found["equal_tensors"], found["changed_tensors"]) == (len(pico("llama").net.state_dict()), 0)
    assert [warning for warning in found["warnings"] if "the same weights, bit for bit" in warning] == found["warnings"]
    assert (found["only_base"], found["only_tuned"], found["reshaped_tensors"]) == ([], [], [])


def test_a_small_edit_is_a_small_distance_and_no_warning(base, tmp_path):
    tuned = edited(one_matrix, tmp_path / "edited")
    found = lineage(base, tuned)
    assert found["relative_distance"] == pytest.approx(naive_distance(pico("llama").net, twin(pico("llama"), one_matrix).net), rel=1e-5)
    assert found["relative_distance"] < 0.02
    assert (found["changed_tensors"], found["warnings"], found["stated_base"]) == (1, [], None)


def test_models_trained_apart_are_root_two_apart_and_warned_of(tmp_path):
    """Their matrices, that is: norms' gains start at 1 in every model, and in models this small they weigh as much as the matrices."""
    nets = [make_net(CONFIGS["llama"](), seed=seed) for seed in (0, 1)]
    for net in nets:
        for parameter in net.parameters():
            parameter.data *= parameter.ndim > 1
    found = lineage(*(saved(net, tmp_path / f"model-{seed}") for seed, net in enumerate(nets)))
    assert found["relative_distance"] == pytest.approx(2**0.5, abs=0.02)
    (warning,) = found["warnings"]
    assert "1.41 apart" in warning
    assert "Is this the right base?" in warning


def test_the_sibling_of_a_fine_tune_is_further_than_its_parent(base, tmp_path):
    """P19: A1 = A + U and A2 = A + V are sqrt(2) as far from each other as each is from A, and both may name A."""

    def child(seed: int) -> Callable[[nn.Module], None]:
        def change(net: nn.Module) -> None:
            generator = torch.Generator().manual_seed(seed)
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)

        return change

    first, second = (edited(child(seed), tmp_path / f"child-{seed}") for seed in (1, 2))
    (Path(second.load) / "README.md").write_text("---\nbase_model: some-one/base\n---\n")
    parent, sibling = lineage(base, second), lineage(first, second)
    assert sibling["relative_distance"] / parent["relative_distance"] == pytest.approx(2**0.5, rel=0.05)
    assert parent["warnings"] == []
    assert "child-2 says that it was made from some-one/base; the base given is" in sibling["warnings"][0]


def moved(seed: int, size: float = 0.02) -> Callable[[nn.Module], None]:
    def change(net: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)

    return change


def test_a_nearer_alternative_is_named(base, tmp_path):
    """P19: A1 = A + U and A2 = A + V; the true base A, given as an alternative, is nearer to A2 than A1 is."""
    first, second = (edited(moved(seed), tmp_path / f"child-{seed}") for seed in (1, 2))
    found = lineage(first, second, [base])
    (warning,) = found["warnings"]
    (other,) = found["alternatives"]
    assert warning.startswith(f"tuned is nearer to {base.ref} ({other['relative_distance']:.4f} of its size) than to the base given, ")
    assert found["relative_distance"] / other["relative_distance"] == pytest.approx(2**0.5, rel=0.05)
    back = lineage(base, second, [first])
    assert back["warnings"] == []
    assert back["alternatives"] == [{"ref": first.ref, "relative_distance": pytest.approx(found["relative_distance"], rel=1e-6)}]


def test_an_adapter_is_held_against_alternatives_too(base, tmp_path):
    far = edited(moved(1, 0.5), tmp_path / "far")
    adapter, merged = made_adapter(base, tmp_path, LoraConfig(**LORA))
    found, expected = lineage(base, adapter, [far]), lineage(base, merged, [far])
    assert found["warnings"] == []
    assert found["alternatives"][0]["relative_distance"] == pytest.approx(expected["alternatives"][0]["relative_distance"], rel=1e-6)


def test_an_alternative_that_shares_little_is_no_rival(base, tmp_path):
    """One that has a single tensor in common, and that one equal, is at distance 0 of it and still not the base."""
    tuned = edited(moved(3), tmp_path / "tuned")
    other = Path(shutil.copytree(tuned.load, tmp_path / "other"))
    save_file({"model.norm.weight": load_file(other / "model.safetensors")["model.norm.weight"]}, other / "model.safetensors")
    found = lineage(base, tuned, [resolve(str(other))])
    assert found["alternatives"][0]["relative_distance"] == 0
    assert found["warnings"] == []


def test_an_alternative_that_is_broken_is_warned_of(base, tmp_path):
    broken = Path(shutil.copytree(base.load, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    (warning,) = lineage(base, edited(one_matrix, tmp_path / "edited"), [resolve(str(broken))])["warnings"]
    assert warning.startswith(
        f"lineage is not compared with the alternative {broken}: the weights in {broken}/model.safetensors cannot be read"
    )


def test_counts_are_the_same_from_both_sides(base, tmp_path):
    net = make_net(LlamaConfig(**{**SIZES, "vocab_size": 300, "num_hidden_layers": 3}))
    state = pico("llama").net.state_dict()
    kept = {name: state[name] for name in net.state_dict() if name.startswith(("model.layers.0", "model.norm"))}
    net.load_state_dict(kept, strict=False)
    other = saved(net, tmp_path / "other")
    there, back = lineage(base, other), lineage(other, base)
    for name in ("equal_tensors", "changed_tensors", "reshaped_tensors"):
        assert there[name] == back[name]
    assert there["equal_tensors"] == len(kept)
    assert there["reshaped_tensors"] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert there["only_base"] == back["only_tuned"] == sorted(name for name in state if ".3." in name)
    assert there["only_tuned"] == back["only_base"] == []
    assert there["equal_tensors"] + there["changed_tensors"] + 2 == len(net.state_dict())


def test_a_copy_in_half_precision_is_near_and_changed(base, tmp_path):
    found = lineage(base, saved(pico("llama").net.bfloat16(), tmp_path / "half"))
    assert 1e-4 < found["relative_distance"] < 1e-2
    assert found["warnings"] == []


def test_a_folder_without_weights_has_no_distance(base, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    found = lineage(base, resolve(str(tmp_path)))
    assert found["relative_distance"] is None
    assert found["warnings"] == []


def test_weights_that_cannot_be_read_are_said_to_be_so(base, tmp_path):
    broken = Path(shutil.copytree(base.load, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"the weights in .*broken/model\.safetensors cannot be read: .*Is the download complete\?"):
        lineage(base, resolve(str(broken)))
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"the weights in .*broken/pytorch_model\.bin cannot be read: .*Is the download complete\?"):
        lineage(base, resolve(str(broken)))


# ---- adapters ----------------------------------------------------------------------------------------------------------------------

LORA = {"r": 4, "target_modules": ["q_proj", "o_proj", "down_proj"]}


def made_adapter(base: Source, folder: Path, config: Any, named: str = "somewhere/base") -> tuple[Source, Source]:
    """An adapter with random factors, and the same change merged into a full model."""
    torch.manual_seed(3)
    adapted = get_peft_model(pico("llama").net, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named}))
    return resolve(str(folder / "adapter"), base=base), saved(adapted.merge_and_unload(), folder / "merged")


@pytest.mark.parametrize(
    "config",
    [LoraConfig(**LORA, lora_alpha=8), LoraConfig(**LORA, use_rslora=True), LoraConfig(**LORA, rank_pattern={"o_proj": 2}),
     LoraConfig(**LORA, alpha_pattern={"o_proj": 2}), LoraConfig(**LORA, use_dora=True)],
    ids=["plain", "rslora", "rank_pattern", "alpha_pattern", "dora"],
)  # fmt: skip
def test_an_adapter_is_as_far_as_its_merged_weights(base, tmp_path, config):
    adapter, merged = made_adapter(base, tmp_path, config)
    found, expected = lineage(base, adapter), lineage(base, merged)
    assert found["relative_distance"] == pytest.approx(expected["relative_distance"], rel=1e-4)
    assert found["changed_tensors"] == expected["changed_tensors"] == 12
    assert found["equal_tensors"] == expected["equal_tensors"]
    assert found["warnings"] == []


def test_an_adapter_that_changes_nothing_is_warned_of(base, tmp_path):
    get_peft_model(pico("llama").net, LoraConfig(**LORA)).save_pretrained(tmp_path / "zero", save_embedding_layers=False)
    found = lineage(base, resolve(str(tmp_path / "zero"), base=base))
    assert (found["relative_distance"], found["changed_tensors"]) == (0, 0)
    assert any("the same weights, bit for bit" in warning for warning in found["warnings"])


def test_where_the_adapter_is_no_lora_no_distance_is_given_and_it_is_said(base, tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    adapter, _ = made_adapter(base, tmp_path, config)
    found = lineage(base, adapter)
    assert found["relative_distance"] is None
    assert found["not_compared"] == [
        "this adapter is of the kind IA3: its change is not compared. Where peft can, merge it and give the full model as tuned"
    ]


def test_an_adapter_made_on_another_base_is_warned_of(base, tmp_path):
    adapter, _ = made_adapter(base, tmp_path, LoraConfig(**LORA), named="some-one/Other-Base")
    found = lineage(base, adapter)
    assert found["stated_base"] == "some-one/Other-Base"
    (warning,) = found["warnings"]
    assert "adapter says that it was made from some-one/Other-Base; the base given is" in warning


@pytest.mark.parametrize(
    "given", ["Base-8B-Instruct", "Base-8B-Instruct.Q4_1.gguf", "a/b/base-8b-instruct-bf16.gguf", "x/BASE-8B-Instruct/"]
)
@pytest.mark.parametrize(
    "stated",
    ["some-one/Base-8B-Instruct", "/elsewhere/base-8b-instruct/", "Base-8B-Instruct.gguf", "some-one/Base-8B", "Base-8B-Instruct-v2"],
)
def test_a_name_is_the_same_but_for_owner_folder_case_and_quantisation(tmp_path, given, stated):
    """And no more: the base model of an Instruct model is its parent, not itself (METHOD A9)."""
    (tmp_path / "README.md").write_text(f"---\nbase_model: {stated}\n---\n")
    tuned = Source(ref="tuned", load=str(tmp_path))
    found = lineage(Source(ref=given, load=str(tmp_path)), tuned)
    assert bool(found["warnings"]) == (stated in ("some-one/Base-8B", "Base-8B-Instruct-v2"))


# ---- what a model card says --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\nbase_model: org/parent\n---\n# A model", "org/parent"),
        ("---\nbase_model: 'org/parent'  # quoted\n---\n", "org/parent"),
        ("---\nbase_model:\n- org/parent\n- org/second\ntags: [a]\n---\n", "org/parent"),
        ("---\nbase_model: [org/parent]\n---\n", "org/parent"),
        ("---\r\nbase_model: org/parent\r\n---\r\n", "org/parent"),
        ("---\nlicense: mit\n---\nbase_model: not/here\n", None),
        ("# No front matter\nbase_model: not/here\n", None),
        ("---\nbase_model:\n---\n", None),
        ("---\nbase_model: []\n---\n", None),
        ("---\nbase_model: {a: b}\n---\n", None),
        ("---\n- a list\n---\n", None),
        ("---\n: : not yaml {\n---\n", None),
        ("---\n", None),
        ("", None),
    ],
)
def test_the_front_matter_of_a_card_names_the_base(tmp_path, card, expected):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert stated_base(Source(ref="x", load=str(tmp_path))) == expected


def test_a_model_without_a_card_names_none(tmp_path):
    assert stated_base(Source(ref="x", load=str(tmp_path))) is None


def test_a_card_that_names_another_base_is_warned_of(base, tmp_path):
    tuned = edited(one_matrix, tmp_path / "edited")
    (Path(tuned.load) / "README.md").write_text("---\nbase_model: org/Another-Model\n---\n")
    found = lineage(base, tuned)
    assert found["stated_base"] == "org/Another-Model"
    assert ["org/Another-Model" in warning for warning in found["warnings"]] == [True]
