"""A pair is loaded as it was asked for, an adapter leaves its base untouched, and what is broken is said in one sentence."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig

from mechdiff.architectures.families import FAMILIES
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import Write, full, replay
from mechdiff.errors import ModelError
from mechdiff.models import pair as models_pair
from mechdiff.models.pair import Model, Pair, free_memory, open_pair, wrap
from pico import CONFIGS, SIZES, each, make_net, pico, save, twin
from tokenizers_made import byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
"""peft's get_peft_model asks transformers for something by its old name."""

IDS = [256, *b"What is two and two?"]


def tuned_net(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.mul_(1.02)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `tuned`, two full models."""
    folder = tmp_path_factory.mktemp("pair")
    base = pico("llama")
    save(base.net, byte_tokenizer(), folder / "base")
    save(twin(base, tuned_net).net, byte_tokenizer(), folder / "tuned")
    return folder


@pytest.fixture
def broken(folders: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may break."""
    return Path(shutil.copytree(folders / "base", tmp_path / "broken"))


def load(folder: Path) -> Model:
    with open_pair(str(folder), str(folder), device="cpu").use("base") as model:
        return model


def logits(model: Model) -> Tensor:
    return capture(model, IDS, [], [0]).logits


# ---- full models -------------------------------------------------------------------------------------------------------------------


def test_a_pair_of_folders_is_base_and_tuned(folders):
    pair = open_pair(str(folders / "base"), str(folders / "tuned"), device="cpu")
    expected = {"base": logits(pico("llama")), "tuned": logits(twin(pico("llama"), tuned_net))}
    for side in ("tuned", "base", "tuned"):
        with pair.use(side) as model:
            assert (model.side, model.ref, model.dtype) == (side, str(folders / side), torch.float32)
            assert not model.net.training
            assert torch.equal(logits(model), expected[side])
    assert pair.tokenizer("base")("ab")["input_ids"] == [256, 97, 98]
    assert pair.config("tuned").hidden_size == 32


def test_both_are_kept_where_both_fit(folders):
    pair = open_pair(str(folders / "base"), str(folders / "tuned"), device="cpu", memory="both")
    with pair.use("base") as base, pair.use("tuned") as tuned, pair.use("base") as again:
        assert base is again
        assert not torch.equal(logits(base), logits(tuned))


def test_one_at_a_time_the_first_is_gone_when_the_second_is_there(folders):
    pair = open_pair(str(folders / "base"), str(folders / "tuned"), device="cpu", memory="one")
    with pair.use("base") as base:
        expected = logits(base)
    with pair.use("tuned") as tuned:
        assert {parameter.device.type for parameter in base.net.parameters()} == {"meta"}, "gone, though this test still holds it"
        logits(tuned)
    with pair.use("base") as base:
        assert torch.equal(logits(base), expected)
    pair.release()
    assert base.device.type == "meta"


def test_memory_is_looked_at_when_nothing_is_said(folders, monkeypatch):
    both = str(folders / "base"), str(folders / "tuned")
    assert not open_pair(*both, device="cpu").one_at_a_time
    monkeypatch.setattr(models_pair, "free_memory", lambda device: 100_000)
    assert open_pair(*both, device="cpu").one_at_a_time
    assert not open_pair(*both, device="cpu", memory="both").one_at_a_time


def test_free_memory_is_what_the_system_says(tmp_path, monkeypatch):
    device = torch.device("cpu")
    assert 1 << 20 < free_memory(device) < 1 << 50
    monkeypatch.setattr("mechdiff.models.devices.Path", lambda path: tmp_path / "none")
    assert free_memory(device) == 8 << 30
    (tmp_path / "none").write_text("MemTotal:       200 kB\nMemAvailable:       100 kB\n")
    assert free_memory(device) == 100 * 1024


@pytest.mark.parametrize("dtype", models_pair.DTYPES)
def test_weights_come_in_the_wanted_precision(folders, dtype):
    with open_pair(str(folders / "base"), str(folders / "tuned"), dtype=dtype, device="cpu").use("base") as model:
        assert model.dtype == models_pair.DTYPES[dtype]


def test_tied_embeddings_are_one_tensor_and_nothing_is_missing(tmp_path):
    net = make_net(LlamaConfig(**SIZES, tie_word_embeddings=True))
    model = load(save(net, byte_tokenizer(), tmp_path / "tied"))
    assert model.head.weight is model.net.get_input_embeddings().weight
    assert torch.equal(logits(model), logits(wrap(net, side="base", ref="tied")))


# ---- models that cannot be used ----------------------------------------------------------------------------------------------------


def weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors of a model's or adapter's file."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(broken, value):
    weights(broken, lambda tensors: tensors["model.layers.2.mlp.up_proj.weight"][3, 4].fill_(value))
    with pytest.raises(ModelError, match=r"broken: the tensor model\.layers\.2\.mlp\.up_proj\.weight holds NaN or infinite weights"):
        load(broken)


def test_missing_tensors_are_refused(broken):
    weights(broken, lambda tensors: [tensors.pop(f"model.layers.1.self_attn.{name}_proj.weight") for name in "kv"])
    with pytest.raises(ModelError, match=r"broken: its files lack 2 of the model's tensors, the first model\.layers\.1\.self_attn\.k_proj"):
        load(broken)


def test_tensors_of_other_shapes_are_refused(broken):
    weights(broken, lambda tensors: tensors.update({"model.norm.weight": torch.ones(33)}))
    with pytest.raises(
        ModelError, match=r"broken: 1 tensors have other shapes.*model\.norm\.weight: \(33,\) in the file, \(32,\) by the config"
    ):
        load(broken)


@pytest.mark.parametrize("size", [0, 4, 1000, 100_000])
def test_a_truncated_file_is_refused(broken, size):
    path = broken / "model.safetensors"
    assert path.stat().st_size > size
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"broken: the model cannot be loaded: .*Is the download complete"):
        load(broken)


def test_a_folder_without_weights_is_refused(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"broken: the model cannot be loaded: .*no file named model\.safetensors"):
        load(broken)


def test_an_unknown_family_is_refused_before_anything_is_loaded(folders, broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "hrm_text"}))
    with pytest.raises(ModelError, match="broken: no row can be proposed for the architecture 'hrm_text'"):
        open_pair(str(folders / "base"), str(broken), device="cpu")


@pytest.mark.parametrize("field", ["blocks", "projection", "mid", "mlp", "embed", "final_norm", "head"])
def test_a_model_that_is_not_as_its_familys_row_says_is_refused(monkeypatch, field):
    monkeypatch.setitem(FAMILIES, "llama", dataclasses.replace(FAMILIES["llama"], **{field: "nowhere"}))
    with pytest.raises(ModelError, match=r"^pico llama: its modules are not where the row 'llama' of the family table says"):
        pico("llama")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_refused(folders):
    both = str(folders / "base"), str(folders / "tuned")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ModelError, match=rf"^--device {device}: this machine has no CUDA device\. Use --device cpu"):
            open_pair(*both, device=device)
    assert open_pair(*both, device="auto").device.type == "cpu"


def test_a_device_that_nobody_knows_is_refused(folders):
    with pytest.raises(ModelError, match=r"^--device gpu0: no such device"):
        open_pair(str(folders / "base"), str(folders / "tuned"), device="gpu0")


# ---- adapters ----------------------------------------------------------------------------------------------------------------------

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "o_proj", "down_proj"]}


def make_adapter(net: nn.Module, config: object, folder: Path) -> Path:
    """Saves an adapter whose weights are all random (peft starts LoRA at no change)."""
    torch.manual_seed(7)
    adapted = get_peft_model(net, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def adapter(folders: Path) -> Path:
    return make_adapter(pico("llama").net, LoraConfig(**LORA), folders / "adapter")


@pytest.fixture
def broken_adapter(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "broken"))


def open_with(folders: Path, adapter: Path, **options: str) -> Pair:
    return open_pair(str(folders / "base"), str(adapter), device="cpu", **options)


def use(folders: Path, adapter: Path) -> None:
    with open_with(folders, adapter).use("tuned"):
        pass


@pytest.mark.parametrize("memory", ["both", "one"])
def test_an_adapter_pair_shares_its_tensors_and_its_base_is_untouched_to_the_bit(folders, adapter, memory):
    untouched = load(folders / "base")
    expected, states = logits(untouched), capture(untouched, IDS, [Site(3, "resid_post")], [-1]).states
    pair = open_with(folders, adapter, memory=memory)
    for _ in range(2):
        with pair.use("base") as base:
            assert torch.equal(logits(base), expected)
            assert torch.equal(
                capture(base, IDS, [Site(3, "resid_post")], [-1]).states[Site(3, "resid_post")], states[Site(3, "resid_post")]
            )
        with pair.use("tuned") as tuned:
            assert (tuned.net is base.net) == (memory == "one")
            own = {id(parameter) for parameter in base.net.parameters()}
            touched = [name for name, parameter in tuned.net.named_parameters() if id(parameter) not in own]
            assert all(any(target in name for target in LORA["target_modules"]) for name in touched)
            assert bool(touched) == (memory == "both")
            assert (base.side, tuned.side, tuned.ref) == ("base", "tuned", str(adapter))
            assert (logits(tuned) - expected).abs().max() > 0.1
    pair.release()
    with pair.use("base") as base:
        assert torch.equal(logits(base), expected)


def test_the_tuned_side_is_the_base_with_scale_b_a_added_to_its_weights(folders, adapter):
    merged, scale = pico("llama").net, LORA["lora_alpha"] / LORA["r"]
    factors = load_file(adapter / "adapter_model.safetensors")
    names = {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in factors}
    assert len(names) == 4 * 3
    for name in names:
        a, b = (factors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
        merged.get_submodule(name).weight.data += scale * b @ a
    with open_with(folders, adapter).use("tuned") as tuned:
        torch.testing.assert_close(logits(tuned), logits(wrap(merged, side="tuned", ref="")), rtol=1e-5, atol=1e-5)


def test_sites_and_replay_work_through_an_adapter(folders, adapter):
    """What the adapted projection gives is what is read, written and replayed."""
    pair = open_with(folders, adapter)
    for side, other in (("tuned", "base"), ("base", "tuned")):
        with pair.use(other) as model:
            sites = [Site(layer, kind) for layer in range(4) for kind in model.kinds()]
            states = capture(model, IDS, sites, [-1]).states
        with pair.use(side) as model:
            clean = capture(model, IDS, sites, [-1], keep_cache=True)
            assert (clean.states[Site(0, "attn_proj")] - states[Site(0, "attn_proj")]).abs().max() > 0.01
            variants = [{site: Write(value=states[site][None])} for site in sites]
            torch.testing.assert_close(replay(model, [clean], variants), full(model, [clean], variants), rtol=0, atol=1e-5)


@pytest.mark.bits
@pytest.mark.parametrize("name", each(name for name in CONFIGS if name not in ("qwen2_sliding", "neox_sequential")))
def test_adapters_fit_every_family(tmp_path, name):
    model = pico(name)
    save(model.net, byte_tokenizer(), tmp_path / "base")
    expected = logits(model)
    projection = model.family.projection.split(".")[-1]
    make_adapter(model.net, LoraConfig(r=2, target_modules=[projection], fan_in_fan_out=name == "gpt2"), tmp_path / "adapter")
    pair = open_with(tmp_path, tmp_path / "adapter")
    with pair.use("tuned") as tuned:
        assert (logits(tuned) - expected).abs().max() > 0.01
    with pair.use("base") as base:
        assert torch.equal(logits(base), expected)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA, modules_to_save=["lm_head"]),
        LoraConfig(**LORA, use_dora=True),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=["modules_to_save", "dora", "ia3"],
)
def test_other_adapters_that_can_be_switched_off_are_taken(folders, tmp_path, config):
    expected = logits(pico("llama"))
    pair = open_with(folders, make_adapter(pico("llama").net, config, tmp_path / "other"))
    with pair.use("tuned") as tuned:
        assert (logits(tuned) - expected).abs().max() > 0.01
    with pair.use("base") as base:
        assert torch.equal(logits(base), expected)


def test_an_adapter_that_changes_the_prompt_is_refused(folders, tmp_path):
    """It acts through peft's own forward pass: here tuned would silently be base."""
    prefix = make_adapter(pico("llama").net, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), tmp_path / "prefix")
    with pytest.raises(ModelError, match="prefix: this adapter is of the kind PREFIX_TUNING that changes the prompt"):
        use(folders, prefix)


def test_an_adapter_without_weights_is_refused(folders, broken_adapter):
    (broken_adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"adapter_config\.json is there, and neither adapter_model\.safetensors nor adapter_model\.bin is"
    ):
        use(folders, broken_adapter)


def test_a_truncated_adapter_is_refused(folders, broken_adapter):
    path = broken_adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"the weights in .*broken/adapter_model\.safetensors cannot be read"):
        use(folders, broken_adapter)


@pytest.mark.parametrize("text", ["{", "{}", '{"peft_type": "NONE_SUCH"}'])
def test_an_adapter_whose_config_cannot_be_read_is_refused(folders, broken_adapter, text):
    (broken_adapter / "adapter_config.json").write_text(text)
    with pytest.raises(
        ModelError, match=r"broken: peft cannot put this adapter on the base: |broken.adapter_config\.json: this is no JSON"
    ):
        use(folders, broken_adapter)


def test_an_adapter_with_nan_weights_is_refused(folders, broken_adapter):
    weights(broken_adapter, lambda tensors: next(iter(tensors.values())).fill_(torch.nan))
    with pytest.raises(ModelError, match=r"broken: the tensor .*lora_A.* holds NaN or infinite weights"):
        use(folders, broken_adapter)


def test_an_adapter_of_another_architecture_is_refused(folders, tmp_path):
    other = make_net(GPT2Config(vocab_size=259, n_embd=32, n_layer=4, n_head=4))
    make_adapter(other, LoraConfig(r=2, target_modules=["c_proj"], fan_in_fan_out=True), tmp_path / "other")
    with pytest.raises(ModelError, match=r"this adapter changes transformer\.h\.0\.attn\.c_proj, which the base does not have"):
        use(folders, tmp_path / "other")


@pytest.mark.parametrize("sizes", [{"hidden_size": 48, "head_dim": 12}, {"intermediate_size": 96}], ids=str)
def test_an_adapter_of_another_size_is_refused(folders, tmp_path, sizes):
    other = make_net(LlamaConfig(**{**SIZES, **sizes}))
    make_adapter(other, LoraConfig(**LORA), tmp_path / "other")
    with pytest.raises(ModelError, match=r"lora_[AB]\.weight has shape .*It was made for a model of another size"):
        use(folders, tmp_path / "other")


def test_an_adapter_made_for_more_blocks_is_refused(folders, tmp_path):
    make_adapter(make_net(LlamaConfig(**{**SIZES, "num_hidden_layers": 5})), LoraConfig(**LORA), tmp_path / "deeper")
    with pytest.raises(ModelError, match=r"this adapter changes model\.layers\.4\.\S+, which the base does not have"):
        use(folders, tmp_path / "deeper")


def test_an_adapter_runs_its_bases_code_where_the_base_was_named(folders, adapter):
    pair = open_with(folders, adapter)
    assert [pair._trusts(side) for side in ("base", "tuned")] == [False, False]
    pair.trusted = (pair.base.ref,)
    assert [pair._trusts(side) for side in ("base", "tuned")] == [True, True]
    full_pair = open_pair(str(folders / "base"), str(folders / "tuned"), device="cpu", trusted=(pair.base.ref,))
    assert [full_pair._trusts(side) for side in ("base", "tuned")] == [True, False]
