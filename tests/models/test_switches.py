"""With its adapter off a network is the base to the bit, also where peft leaves other tensors in its place; with it on it is peft's own pass."""

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters_made import LORA, REWRITING, make_pair
from mechdiff.architectures.network import quiet
from mechdiff.audit.rerun import merged
from mechdiff.engine.activations import forward
from mechdiff.engine.grafts import grafted, truncated
from mechdiff.errors import ModelError
from mechdiff.models.adapters import open_adapter
from mechdiff.models.changes import open_changes
from mechdiff.models.modules import changes_of_adapter, factors
from mechdiff.models.pair import Pair, open_pair
from mechdiff.models.sources import resolve
from mechdiff.models.switches import Rewritten, attach_adapter
from mechdiff.models.tensors import open_tensors
from pico import pico

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

IDS = torch.tensor([[256, 5, 90, 17, 33, 108, 7]])
KINDS: dict[str, tuple[str, Any]] = {
    "pissa": ("llama", REWRITING["pissa"]),
    "pissa of a tied head": ("gemma2", lambda: LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights="pissa")),
    "pissa on conv1d": ("gpt2", lambda: LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights="pissa", fan_in_fan_out=True)),
    "olora": ("llama", REWRITING["olora"]),
    "kasa": ("llama", REWRITING["kasa"]),
    "biases of its layers": ("qwen2", lambda: LoraConfig(**LORA, bias="lora_only")),
    "all biases": ("gpt2", lambda: LoraConfig(r=2, target_modules=["c_attn"], bias="all", fan_in_fan_out=True)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder with the base and the adapter of a kind, made once; no test changes it."""

    @cache
    def folder(kind: str) -> Path:
        name, config = KINDS[kind]
        place = tmp_path_factory.mktemp("kind")
        make_pair(place, config(), name)
        return place

    return folder


def opened(folder: Path) -> Pair:
    """Switched, not merged into copies (merged.py), so that bits can be compared."""
    return open_pair(str(folder / "base"), str(folder / "adapter"), device="cpu", memory="one")


def logits(pair: Pair, side: Any) -> torch.Tensor:
    with pair.use(side) as model:
        return forward(model, IDS, logits_to_keep=0).logits


def by_peft(folder: Path) -> torch.Tensor:
    """What plain transformers and peft give of the two folders."""
    with quiet(), torch.no_grad():
        net = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        return PeftModel.from_pretrained(net, str(folder / "adapter")).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_both_models_are_right_where_peft_writes_over_the_base(kind: str, made: Callable[[str], Path]) -> None:
    name, folder = KINDS[kind][0], made(kind)
    pair, plain, tuned = opened(folder), forward(pico(name), IDS, logits_to_keep=0).logits, by_peft(folder)
    for _ in range(2):
        assert torch.equal(logits(pair, "base"), plain)
        torch.testing.assert_close(logits(pair, "tuned"), tuned, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, tuned, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_an_adapter_changes_is_grafted_and_taken_back(kind: str, made: Callable[[str], Path]) -> None:
    folder = made(kind)
    pair = opened(folder)
    tuned = logits(pair, "tuned")
    with pair.use("base") as base:
        plain, changes = logits(pair, "base"), changes_of_adapter(base)
        assert any(isinstance(layer, Rewritten) for layers in changes.switches.values() for layer in layers)
        with grafted(base, changes, changes.units):
            assert torch.equal(forward(base, IDS, logits_to_keep=0).logits, tuned)
        for unit in changes.units:
            with grafted(base, changes, [unit]):
                assert not torch.equal(forward(base, IDS, logits_to_keep=0).logits, plain), f"{unit} does nothing"
        assert torch.equal(forward(base, IDS, logits_to_keep=0).logits, plain)


@pytest.mark.parametrize("kind", ["pissa", "pissa on conv1d", "olora", "biases of its layers", "all biases"])
def test_a_change_with_its_start_in_the_base_is_cut_to_a_rank(kind: str, made: Callable[[str], Path]) -> None:
    """At its full rank it is the tuned model; the rank of a start and a learned part together is twice that of the factors."""
    folder = made(kind)
    pair = opened(folder)
    tuned = logits(pair, "tuned")
    with pair.use("base") as base:
        plain, changes = logits(pair, "base"), changes_of_adapter(base)
        cut = {unit: factors(base, changes, unit) for unit in changes.units}
        ranks = {change.full for matrices in cut.values() for change in matrices.values()}
        assert ranks == {2 if "biases" in kind else 4}
        with truncated(base, changes, cut, 4):
            torch.testing.assert_close(forward(base, IDS, logits_to_keep=0).logits, tuned, rtol=1e-4, atol=1e-4)
        assert torch.equal(forward(base, IDS, logits_to_keep=0).logits, plain)


@pytest.mark.parametrize("kind", ["pissa", "pissa on conv1d", "olora", "kasa", "biases of its layers", "all biases"])
def test_the_weights_are_those_that_peft_merges(kind: str, made: Callable[[str], Path]) -> None:
    folder = made(kind)
    with quiet():
        net = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        merged: Any = PeftModel.from_pretrained(net, str(folder / "adapter")).merge_and_unload()
    save = dict(merged.named_parameters())
    base = resolve(str(folder / "base"))
    changes = open_changes(base, resolve(str(folder / "adapter"), base=base))
    assert not changes.uncompared
    for change in changes:
        expected = save[change.name].detach()
        expected = expected.T if changes.base.transposed(change.name) else expected
        torch.testing.assert_close(change.after().float(), expected, rtol=1e-4, atol=1e-5)
        if change.factors:
            assert change.factors.left.shape[1] == (2 if "biases" in kind else 4)


def test_an_embedding_that_an_adapter_holds_whole_is_switched(tmp_path: Path) -> None:
    """As peft saves it beside factors when asked to (save_embedding_layers), here trained further; of a tied pair it is both."""
    for name, tied in (("llama", False), ("gemma2", True)):
        folder = tmp_path / name
        make_pair(folder, LoraConfig(**LORA), name)
        path = folder / "adapter" / "adapter_model.safetensors"
        new = pico(name).net.model.embed_tokens.weight.detach() * 1.25
        save_file({**load_file(path), "base_model.model.model.embed_tokens.weight": new}, path)
        pair = opened(folder)
        assert torch.equal(logits(pair, "base"), forward(pico(name), IDS, logits_to_keep=0).logits)
        torch.testing.assert_close(logits(pair, "tuned"), by_peft(folder), rtol=1e-5, atol=1e-6)
        base = resolve(str(folder / "base"))
        changes = open_changes(base, resolve(str(folder / "adapter"), base=base))
        assert torch.equal(changes.change("model.embed_tokens.weight").after(), new)
        assert changes.tuned.tied == tied


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_a_change_of_one_of_two_tied_matrices_is_merged_into_that_one(target: str, tmp_path: Path) -> None:
    """peft would add it to both, which is a third model; the second way by which weights are verified does not."""
    make_pair(tmp_path, LoraConfig(r=2, target_modules=[target, "q_proj"]), "gemma2")
    tuned = by_peft(tmp_path)
    for tied in (False, True):
        net = merged(attach_adapter(pico("gemma2").net, tmp_path / "adapter"), tied=tied)
        with torch.no_grad():
            assert torch.allclose(net(input_ids=IDS).logits, tuned, atol=1e-4) == (not tied)


def test_nothing_is_warned_of_biases_that_are_switched(tmp_path: Path) -> None:
    make_pair(tmp_path, KINDS["biases of its layers"][1](), "qwen2")
    pair = opened(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for side in ("tuned", "base"):
            logits(pair, side)


def test_an_adapter_that_draws_random_numbers_in_every_pass_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import Linear

    plain = Linear.forward

    def drawing(layer: Any, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        out = plain(layer, x, *args, **options)
        return out if layer.disable_adapters else out + 0.1 * torch.randn_like(out)

    make_pair(tmp_path, LoraConfig(**LORA))
    monkeypatch.setattr(Linear, "forward", drawing)
    with pytest.raises(ModelError, match="draws random numbers in each pass: two of them are"):
        attach_adapter(pico("llama").net, tmp_path / "adapter")


def test_a_pass_that_peft_alone_can_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What peft does around the network, in its own forward, is not in the network that is studied."""
    from peft import PeftModelForCausalLM

    make_pair(tmp_path, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    plain = PeftModelForCausalLM.forward

    def around(model: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        return plain(model, input_ids.flip(-1), **options)

    attach_adapter(pico("llama").net, tmp_path / "adapter")
    monkeypatch.setattr(PeftModelForCausalLM, "forward", around)
    with pytest.raises(ModelError, match=r"peft's own pass with this adapter is .* its states cannot be read"):
        attach_adapter(pico("llama").net, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("init", "why"),
    [
        ("corda", "only after preprocess_corda has run"),
        ("loftq", "the base rounded, made anew on a GPU"),
        ("pissa_niter_4", "drawn anew at every load"),
    ],
)
def test_a_start_that_cannot_be_had_again_is_refused_with_the_reason(init: str, why: str, tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": init, "loftq_config": {"loftq_bits": 4}}))
    with pytest.raises(ModelError, match=f"what it leaves there cannot be had again: .*{why}") as error:
        opened(tmp_path)
    assert ("merge_and_unload" in str(error.value)) == (init == "loftq")


def test_fields_that_peft_does_not_know_are_no_obstacle(tmp_path: Path) -> None:
    """As Unsloth writes them, with a base of 4 bits, a pattern for modules and factors in half precision."""
    torch.manual_seed(0)
    make_pair(tmp_path, LoraConfig(**LORA))
    path = tmp_path / "adapter" / "adapter_config.json"
    unsloth = {
        "auto_mapping": {
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        "base_model_name_or_path": "unsloth/some-base-bnb-4bit",
        "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn).*?(?:q_proj|o_proj))|(?:\bmodel\.layers\.[\d]{1,}\.self_attn\.(?:q_proj|o_proj))",
        "unsloth_version": "2026.11.1",
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), **unsloth}))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(weights).items()}, weights)
    pair = opened(tmp_path)
    assert torch.equal(logits(pair, "base"), forward(pico("llama"), IDS, logits_to_keep=0).logits)
    assert torch.equal(logits(pair, "tuned"), by_peft(tmp_path))
    base = resolve(str(tmp_path / "base"))
    changes = open_changes(base, resolve(str(tmp_path / "adapter"), base=base))
    assert sum(not change.untouched for change in changes) == 8


def test_a_plain_adapter_costs_no_second_copy_of_the_base(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    adapted = attach_adapter(pico("llama").net, tmp_path / "adapter")
    assert not [module for module in adapted.modules() if isinstance(module, Rewritten)]
    start: Any = get_peft_model(pico("llama").net, REWRITING["pissa"]())
    start.save_pretrained(tmp_path / "pissa")
    held = [module for module in attach_adapter(pico("llama").net, tmp_path / "pissa").modules() if isinstance(module, Rewritten)]
    assert len(held) == 8, "q_proj and o_proj of four blocks"


def in_a_pickle(folder: Path, held: Any) -> None:
    """The adapter of a folder as peft before 0.7 saved it, and safe_serialization=False does."""
    path = folder / "adapter" / "adapter_model.safetensors"
    torch.save(held or load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()


def test_an_adapter_in_a_pickle_is_the_same_adapter(tmp_path: Path) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    tuned, base = by_peft(tmp_path), resolve(str(tmp_path / "base"))
    expected = {change.name: change.delta() for change in open_changes(base, resolve(str(tmp_path / "adapter"), base=base))}
    in_a_pickle(tmp_path, None)
    pair = opened(tmp_path)
    assert torch.equal(logits(pair, "tuned"), tuned)
    assert torch.equal(logits(pair, "base"), forward(pico("llama"), IDS, logits_to_keep=0).logits)
    for change in open_changes(base, resolve(str(tmp_path / "adapter"), base=base)):
        assert torch.equal(change.delta(), expected[change.name])


class _Code:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("this ran",)


def test_a_pickle_that_runs_code_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_pair(tmp_path, LoraConfig(**LORA))
    in_a_pickle(tmp_path, {"a": _Code()})
    for read in (lambda: logits(opened(tmp_path), "tuned"), lambda: open_adapter(tmp_path / "adapter", open_tensors(tmp_path / "base"))):
        with pytest.raises(ModelError, match="a pickle that holds more than tensors"):
            read()
    assert "this ran" not in capsys.readouterr().out
