"""Models in memory are studied as they are, give the numbers of their files, and come back to the bit as they were."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from transformers import AutoModelForCausalLM

import pico
from gguf_made import write_gguf
from mechdiff import api
from mechdiff.architectures.network import quiet
from mechdiff.audit.rerun import Rerun
from mechdiff.engine.reading import is_exact
from mechdiff.errors import ModelError, StudyError
from mechdiff.files import in_memory as files
from mechdiff.measures.catalogue import EXPERIMENTS
from mechdiff.models.changes import open_changes
from mechdiff.models.in_memory import lent
from mechdiff.models.pair import open_pair
from mechdiff.models.sources import HELD
from mechdiff.validate.made import CHATML, byte_tokenizer, random_net

PROMPTS = [f"Say {number * 37 % 11} of ab{'c' * number}" for number in range(9)]
MEASURES: list[Any] = ["divergence", "weights", "grafting", {"patching": {"layers": [1, 2], "directions": "both"}}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer(CHATML)


def nets() -> tuple[Any, Any]:
    """A base, and its twin with one other matrix."""
    base = random_net(pico.CONFIGS["llama"]())
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        torch.manual_seed(3)
        weight = tuned.model.layers[1].mlp.down_proj.weight
        weight.add_(torch.randn_like(weight) * 0.2)
    return base, tuned


def adapted(**config: Any) -> Any:
    """A PeftModel in training mode whose LoRA changes two matrices of each block."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    with quiet():
        net = get_peft_model(random_net(pico.CONFIGS["llama"]()), LoraConfig(**{"r": 2, "target_modules": ["o_proj", "up_proj"]} | config))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


def state(net: Any) -> dict[str, Any]:
    """All of a network that a caller could miss."""
    named = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = list(net.named_modules())
    return {
        "bits": {name: tensor.detach().clone() for name, tensor in named},
        "objects": {name: (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.device, tensor.requires_grad) for name, tensor in named},
        "grads": {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in named},
        "modules": [(name, id(module), module.training) for name, module in modules],
        "hooks": [(name, {hook: list(vars(module)[hook]) for hook in hooks}) for name, module in modules],
        "attributes": [(name, sorted(vars(module))) for name, module in modules],
        "adapters": [
            (name, module._disable_adapters, copy.copy(module._active_adapter))
            for name, module in modules
            if hasattr(module, "_disable_adapters")
        ],
        "adapter_configs": {name: copy.deepcopy(vars(one)) for name, one in getattr(net, "peft_config", {}).items()},
        "config": net.config.to_dict(),
        "generation": net.generation_config.to_dict() if net.generation_config else None,
    }


@contextmanager
def as_before(*given: Any) -> Iterator[None]:
    before = [state(net) for net in given]
    yield
    for net, old in zip(given, before, strict=True):
        new = state(net)
        for part in ("bits", "grads"):
            assert old[part].keys() == new[part].keys()
            assert all(old[part][name] is new[part][name] or torch.equal(old[part][name], new[part][name]) for name in old[part])
        assert {part: old[part] for part in old.keys() - {"bits", "grads"}} == {part: new[part] for part in new.keys() - {"bits", "grads"}}


def in_training(net: Any) -> Any:
    """As a trainer has it: in training mode but one module, with gradients, a frozen tensor, and a hook of its own."""
    net.train()
    net.get_submodule("model.layers.2" if hasattr(net, "model") and not hasattr(net, "peft_config") else "base_model").eval()
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[-1].requires_grad_(False)
    net.register_forward_hook(lambda module, given, out: out)
    return net


def rows_of(run: api.Run) -> pl.DataFrame:
    frame = run.rows()
    return frame.sort(frame.columns[:-1])


def diff(*models: Any, out: Path, asked: list[Any] | None = None, **more: Any) -> api.Run:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(api, "build_report", lambda place, chapters: None)
        changed.setattr(api, "_live", lambda folder, prepared, opened: nullcontext(lambda look: None))
        return api.diff(*models, prompts=PROMPTS, out=out, measures=asked or MEASURES, progress=False, answers={"tokens": 0}, **more)


# ---- the numbers of files, and models as they were ------------------------------------------------------------------------------------


@pytest.mark.ci
def test_a_pair_in_memory_gives_the_rows_of_its_files_and_is_as_before(tmp_path: Path, tokenizer: Any) -> None:
    base, tuned = map(in_training, nets())
    for name, net in (("base", base), ("tuned", tuned)):
        net.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    with as_before(base, tuned):
        held = diff((base, tokenizer), tuned, tokenizer=tokenizer, out=tmp_path / "held")
    filed = diff(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "filed")
    assert_frame_equal(rows_of(held), rows_of(filed), rel_tol=0, abs_tol=0)
    record = held.manifest()["pair"]["tuned"]
    tensors = tuned.state_dict()
    assert record["files"][files.NAME] == files.digest(tensors)
    assert record["ref"].endswith(f"(in memory, {files.digest(tensors)[:8]})")
    assert held.manifest()["lineage"]["relative_distance"] == filed.manifest()["lineage"]["relative_distance"] > 0
    assert not HELD
    assert not files.LENT


@pytest.mark.ci
def test_an_adapter_in_memory_gives_the_rows_of_its_folder_and_is_as_before(tmp_path: Path, tokenizer: Any) -> None:
    net = adapted()
    net.save_pretrained(tmp_path / "adapter")
    random_net(pico.CONFIGS["llama"]()).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    in_training(net)
    with as_before(net):
        held = diff(None, (net, tokenizer), out=tmp_path / "held")
    filed = diff(tmp_path / "base", tmp_path / "adapter", out=tmp_path / "filed")  # merged, where the model in memory is switched
    assert_frame_equal(rows_of(held), rows_of(filed), rel_tol=1e-3, abs_tol=1e-5)
    assert held.manifest()["pair"]["tuned"]["adapter"]
    assert held.manifest()["lineage"]["warnings"] == []
    assert held.manifest()["lineage"]["relative_distance"] == pytest.approx(filed.manifest()["lineage"]["relative_distance"], rel=1e-6)
    with as_before(net):
        few = {"asked": ["divergence", "weights"]}
        named = diff(
            tmp_path / "base", (net, tokenizer), out=tmp_path / "named", **few
        )  # the adapter's tensors go on the base of that name
    some = pl.col("measure").is_in(few["asked"])
    assert_frame_equal(rows_of(named).filter(some), rows_of(filed).filter(some), rel_tol=1e-6, abs_tol=1e-9)
    assert named.manifest()["config"]["pair"]["tuned"] == held.manifest()["config"]["pair"]["tuned"]


def test_what_runs_is_the_model_that_was_handed_over(tokenizer: Any) -> None:
    net, (base, tuned) = adapted(), nets()
    with lent(None, net, tokenizer) as refs, (pair := open_pair(*refs)).use("base") as below:
        assert below.net is net.get_base_model()
        assert net.base_model.model.model.layers[0].mlp.up_proj.disable_adapters
        with pair.use("tuned") as above:
            assert above.net is below.net
            assert not net.base_model.model.model.layers[0].mlp.up_proj.disable_adapters
        pair.release()
        assert not any(parameter.is_meta for parameter in net.parameters())
    with lent(base, tuned, tokenizer) as refs, open_pair(*refs).use("tuned") as model:
        assert model.net is tuned


def test_models_are_as_before_after_an_error(tokenizer: Any) -> None:
    net = in_training(adapted())
    with as_before(net), pytest.raises(ZeroDivisionError), lent(None, net, tokenizer) as refs, open_pair(*refs).use("base"):
        raise ZeroDivisionError


@pytest.mark.parametrize("family", pico.each(pico.FEW, usual=("llama", "gpt2", "gpt_oss")))
def test_every_tensor_of_a_family_is_found_by_its_name(family: str, tokenizer: Any) -> None:
    base = random_net(pico.CONFIGS[family]())
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        pico.moved(tuned)
    with lent(base, tuned, tokenizer) as refs:
        pair = open_pair(*refs)
        found = {change.name: change for change in open_changes(pair.base, pair.tuned)}
        tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
        expected = dict(base.named_parameters()) | ({} if tied else {"lm_head.weight": base.get_output_embeddings().weight})
        assert expected.keys() <= found.keys()
        after = dict(tuned.named_parameters())
        for name, own in expected.items():
            change = (after[name].double() - own.double()).square().sum().item()
            assert found[name].squared_change() == pytest.approx(change, rel=1e-5)


def test_a_digest_is_of_every_bit_and_name(tokenizer: Any) -> None:
    base, _ = nets()
    found = files.digest(base.state_dict())
    with torch.no_grad():
        base.model.norm.weight[3] += 2**-20
    assert files.digest(base.state_dict()) != found
    named = dict(base.state_dict())
    named["other"] = named.pop("model.norm.weight")
    assert files.digest(named) not in (found, files.digest(base.state_dict()))
    assert files.digest({"a": torch.tensor(1.0)}) != files.digest({"a": torch.tensor(1)})


def test_a_run_in_memory_is_verified_with_the_same_models_alone(tmp_path: Path, tokenizer: Any) -> None:
    base, tuned = nets()
    in_training(tuned)
    with as_before(base, tuned):
        run = diff(base, tuned, out=tmp_path / "run", asked=["divergence", "weights"], tokenizer=tokenizer)
        found = api.verify(run, rows=10, models=(base, tuned), tokenizer=tokenizer)
    assert found.passed
    assert not found.models
    with pytest.raises(ModelError, match="was in a program's memory"):
        Rerun(run.path, EXPERIMENTS)
    with torch.no_grad():
        tuned.model.norm.weight += 1
    with pytest.raises(ModelError, match="was in a program's memory"):
        api.verify(run, rows=10, models=(base, tuned), tokenizer=tokenizer)


# ---- what cannot be lent ----------------------------------------------------------------------------------------------------------------


def _merged() -> Any:
    net = adapted()
    net.merge_adapter()
    return net


def _two() -> Any:
    net = adapted()
    net.add_adapter("other", net.peft_config["default"])
    net.base_model.set_adapter(["default", "other"])
    return net


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: adapted(init_lora_weights="pissa"), "took its start out of the base's matrices"),
        (lambda: adapted(bias="all"), "trained the base's own biases"),
        (_merged, "merged into its base"),
        (_two, "2 active adapters"),
    ],
)
def test_an_adapter_without_which_the_model_is_not_the_base_is_refused(made: Callable[[], Any], says: str, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=says), lent(None, made(), tokenizer):
        pass


def test_a_model_that_transformers_read_from_a_gguf_file_is_in_float_and_one_in_few_bits_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """transformers keeps the file's mark in the config of a network whose weights it has decoded."""
    write_gguf(pico.make_net(pico.CONFIGS["llama"]()), tmp_path / "small.gguf")
    with quiet():
        read = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="small.gguf")
    assert read.config.quantization_config is not None
    with lent(read, nets()[1], tokenizer) as refs, open_pair(*refs).use("base") as model:
        assert model.net is read
        assert is_exact(model), "its rows are those of any float32 model"
    base, tuned = nets()
    tuned.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ModelError, match="held in 8 or 4 bits"), lent(base, tuned, tokenizer):
        pass


def test_models_that_cannot_be_lent_say_why(tmp_path: Path, tokenizer: Any) -> None:
    base, tuned = nets()
    for given, says in (
        ((base, torch.nn.DataParallel(tuned)), "the model inside"),
        ((base, tuned.to("meta")), "not in memory"),
        ((adapted(), base), "given a PeftModel"),
        ((copy.deepcopy(nets()[1]), adapted()), "other weights than base"),
    ):
        with pytest.raises(ModelError, match=says), lent(*given, tokenizer):
            pass
    with pytest.raises(ModelError, match="needs its tokenizer"), lent(base, base):
        pass
    adapted().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="would be put into the model that you hold"), lent(base, tmp_path / "adapter", tokenizer):
        pass
    with pytest.raises(ModelError, match="float32, and stays so"):
        diff(base, base, out=tmp_path / "no", tokenizer=tokenizer, dtype="bfloat16")
    with pytest.raises(ModelError, match="Move both"):
        diff(base, nets()[1].bfloat16(), out=tmp_path / "no", tokenizer=tokenizer)
    with pytest.raises(StudyError, match="leave ray out"):
        diff(base, base, out=tmp_path / "no", tokenizer=tokenizer, ray="auto")
    with pytest.raises(StudyError, match="Did you mean measures"):
        diff(base, base, out=tmp_path / "no", tokenizer=tokenizer, measure=["weights"])
    with pytest.raises(StudyError, match="Did you mean quick"):
        diff(base, base, out=tmp_path / "no", tokenizer=tokenizer, preset="quik")
    with pytest.raises(StudyError, match="no tuned model is given"):
        diff(base, out=tmp_path / "no", tokenizer=tokenizer)
