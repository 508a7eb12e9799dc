"""How many weights a model has is counted on its own network, experts too; what is said and planned hangs on it."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from mechdiff.architectures.sizes import Shape
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.models.pair import open_pair
from mechdiff.models.quantization import weights_of
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
from mechdiff.validate.made import random_net
from pico import CONFIGS, SIZES, each, pico, save, twin
from tokenizers_made import CHATML, byte_tokenizer


@pytest.mark.parametrize("family", each())
def test_parameters_are_those_of_the_network_and_ties_count_once(family: str) -> None:
    net = random_net(CONFIGS[family](), seed=0)
    found = weights_of(CONFIGS[family]())
    assert found.stored == sum(parameter.numel() for parameter in net.parameters())
    assert sorted(name for names in found.tensors for name in names) == sorted(dict(net.named_parameters(remove_duplicate=False)))
    assert found.active <= found.stored
    assert (found.active < found.stored) == any("experts" in name for name, _ in net.named_parameters())
    ends = {id(module.weight): module.weight.numel() for module in (net.get_input_embeddings(), net.get_output_embeddings())}
    assert found.active - found.body == sum(ends.values())


@pytest.mark.parametrize(
    ("config", "stored", "active"),
    [
        (lambda: MixtralConfig(), 46.7, 12.9),
        (
            lambda: Qwen3MoeConfig(
                vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
                head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
            ),
            30.5,
            3.3,
        ),
        pytest.param(lambda: DeepseekV3Config(), 671, 37, marks=pytest.mark.slow),
    ],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V3"],
)  # fmt: skip
def test_numbers_are_those_that_the_models_makers_give(config: object, stored: float, active: float) -> None:
    """In billions, as their model cards say; nothing of them takes memory here."""
    found = weights_of(config())  # type: ignore[operator]
    assert found.stored / 1e9 == pytest.approx(stored, rel=0.005)
    assert found.active / 1e9 == pytest.approx(active, rel=0.02)


def test_experts_in_one_tensor_are_not_rounded_and_that_is_said() -> None:
    """By transformers: what it replaces by 4-bit layers are linear layers, without the unembedding."""
    net = random_net(CONFIGS["mixtral"](), seed=0)
    linear = sum(module.weight.numel() for name, module in net.named_modules() if isinstance(module, nn.Linear) and name != "lm_head")
    experts = sum(parameter.numel() for name, parameter in net.named_parameters() if ".experts." in name)
    found = weights_of(CONFIGS["mixtral"]())
    assert (found.rounded, found.experts) == (linear, experts)
    assert found.bytes("nf4") == int(linear * (0.5 + 4 / 64) + (found.stored - linear) * 2)
    assert f"those of the experts ({experts:,}) stay bfloat16" in found.said("nf4")
    assert "bfloat16" not in found.said("float32")


def test_a_model_that_is_not_here_is_guessed_from_its_sizes() -> None:
    config = LlamaConfig(**SIZES)
    shape = Shape(n_layers=4, d_model=32, n_heads=4, n_kv_heads=2, d_head=8, d_mlp=48, vocab=259, context=128)
    untied = 259 * 32
    norms = 4 * 2 * 32 + 32
    assert weights_of(config).stored == shape.guessed().stored + untied + norms
    eight = shape.guessed(experts=8, used=2)
    mlp = 4 * 3 * 32 * 48
    assert eight.stored - shape.guessed().stored == 7 * mlp
    assert eight.active - shape.guessed().active == mlp
    assert eight.experts == 8 * mlp


def test_a_plan_and_the_choice_of_memory_use_the_network_s_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico("mixtral")
    save(base.net, byte_tokenizer(CHATML), tmp_path / "base")
    save(twin(base).net, byte_tokenizer(CHATML), tmp_path / "tuned")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"text": "What is {i}?"}}\n' for i in range(8)))
    both = 2 * 4 * sum(parameter.numel() for parameter in base.net.parameters())
    models = {"base": str(tmp_path / "base"), "tuned": str(tmp_path / "tuned")}
    study = make_study({"pair": models, "prompts": {"file": str(tmp_path / "p.jsonl")}, "measures": ["divergence"]})
    assert prepare(study, RunOptions(device="cpu"), EXPERIMENTS).plan.weights_bytes == both
    for free, one in ((1.5 * both, False), (1.5 * both - 1, True)):
        monkeypatch.setattr("mechdiff.models.pair.free_memory", lambda device, free=free: free)
        assert open_pair(models["base"], models["tuned"], device="cpu").one_at_a_time is one


def test_nothing_is_read_and_no_memory_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.nn.init, "normal_", lambda *args, **kwargs: pytest.fail("a weight was drawn") if not args[0].is_meta else args[0]
    )
    assert weights_of(CONFIGS["llama"]()).stored
