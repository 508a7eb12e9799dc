"""What `check` passes ends a run in no error that `check` could have seen: each broken pair is refused in the sentence that a run of it ends with."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mechdiff import api
from mechdiff.errors import MechdiffError
from mechdiff.study.check import Finding
from mechdiff.study.config import RunOptions
from pico import CONFIGS, make_net, moved, pico, save, twin
from runs import run
from tokenizers_made import BOS, CHATML, byte_tokenizer, piece_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
CPU = RunOptions(device="cpu")


def checked(folder: Path, **how: Any) -> list[Finding]:
    return list(api.check(str(folder / "base"), str(folder / "tuned"), options=CPU, **how))


def refused(folder: Path, **how: Any) -> list[str]:
    return [one.said for one in checked(folder, **how) if one.verdict == "fail"]


def said(found: list[Finding], what: str) -> str:
    return "\n".join(one.said for one in found if one.what == what)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `tuned`, which fit, and eight prompts."""
    folder, base = tmp_path_factory.mktemp("sound"), pico("llama")
    save(base.net, byte_tokenizer(CHATML), folder / "base")
    save(twin(base, moved).net, byte_tokenizer(CHATML), folder / "tuned")
    (folder / "p.jsonl").write_text("".join(json.dumps({"text": f"What is {i}?"}) + "\n" for i in range(8)))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """The same for a test that breaks something of it."""
    return Path(shutil.copytree(sound, tmp_path, dirs_exist_ok=True))


def config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def adapter(folder: Path, tokenizer: Any = None, **options: Any) -> None:
    shutil.rmtree(folder / "tuned")
    get_peft_model(pico("llama").net, LoraConfig(**LORA | options)).save_pretrained(folder / "tuned")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tuned")


def _grown() -> Any:
    tokenizer = byte_tokenizer("<|new|>" + CHATML)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    return tokenizer


def _nan(held: dict[str, torch.Tensor]) -> None:
    held["model.norm.weight"][0] = torch.nan


def _lost(held: dict[str, torch.Tensor]) -> None:
    del held["model.layers.1.mlp.up_proj.weight"]


def _narrow(held: dict[str, torch.Tensor]) -> None:
    held["model.layers.1.mlp.up_proj.weight"] = torch.zeros(8, 32)


def _other_architecture(folder: Path) -> None:
    adapter(folder)
    net = make_net(CONFIGS["gpt2"](), seed=0)
    save(net, byte_tokenizer(CHATML), folder / "base")


def _prompt_tuning(folder: Path) -> None:
    shutil.rmtree(folder / "tuned")
    get_peft_model(pico("llama").net, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(folder / "tuned")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no template": (lambda f: (f / "tuned" / "chat_template.jinja").unlink(), "has none"),  # where the tuned model's is asked for
    "a template that cannot be parsed": (lambda f: (f / "tuned" / "chat_template.jinja").write_text("{% for %}"), "cannot be rendered"),
    "a template that drops the text": (
        lambda f: (f / "tuned" / "chat_template.jinja").write_text("hello"),
        "does not print the user's text",
    ),
    "two start tokens": (lambda f: (f / "tuned" / "chat_template.jinja").write_text(BOS + CHATML), "at the start"),
    "prompts longer than the context": (lambda f: config(f / "tuned", max_position_embeddings=8), "context of 8 tokens"),
    "tokens without a row": (lambda f: adapter(f, _grown()), "its embedding has 259 rows"),
    "vocabularies that share nothing": (lambda f: (f / "tuned" / "tokenizer.json").write_text(_letters()), "share no token"),
    "no tokenizer": (lambda f: [one.unlink() for one in (f / "tuned").glob("*token*")], "tokenizer"),
    "a tokenizer that is no JSON": (lambda f: (f / "tuned" / "tokenizer.json").write_text("{"), "tokenizer"),
    "a weight that is NaN": (lambda f: tensors(f / "tuned", _nan), "NaN or infinite"),
    "a tensor that is not there": (lambda f: tensors(f / "base", _lost), "lack 1 of the model's tensors"),
    "a tensor of another shape": (lambda f: tensors(f / "tuned", _narrow), "other shapes than its config says"),
    "half a file": (lambda f: (f / "base" / "model.safetensors").write_bytes(b"\x10" * 40), "cannot be read"),
    "no weights": (lambda f: (f / "tuned" / "model.safetensors").unlink(), "tuned"),
    "no folder": (lambda f: shutil.rmtree(f / "base"), "base"),
    "no config": (lambda f: (f / "tuned" / "config.json").unlink(), "no config.json"),
    "an adapter that is drawn anew at each load": (lambda f: adapter(f, init_lora_weights="pissa_niter_2"), "pissa_niter_2"),
    "an adapter that changes the prompt": (_prompt_tuning, "of the kind PROMPT_TUNING"),
    "an adapter of another architecture": (_other_architecture, "another architecture"),
    "an adapter without its file": (lambda f: adapter(f) or (f / "tuned" / "adapter_model.safetensors").unlink(), "adapter_model"),
}


BEGUN = {"a weight that is NaN", "a tensor that is not there", "a tensor of another shape", "no weights"}
"""What a run sees when it loads the models: its page stands by then."""


def _letters() -> str:
    """A tokenizer of Kazakh letters alone."""
    tokenizer = piece_tokenizer(["қазақ"], 30)
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    stated["model"]["vocab"] = {f"қ{i}": i for i in range(300)}
    stated["model"] |= {"merges": [], "byte_fallback": False, "unk_token": "қ0"}
    stated["added_tokens"] = []
    return json.dumps(stated)


@pytest.mark.parametrize("fault", BROKEN)
def test_what_a_run_ends_in_is_said_by_check_in_the_same_sentence(fault: str, folder: Path) -> None:
    breaks, part = BROKEN[fault]
    breaks(folder)
    prompts, policy = folder / "p.jsonl", "same_text" if fault == "no template" else "auto"
    asked = {"file": str(prompts), "policy": policy}
    with pytest.raises(MechdiffError) as ended:
        run(base=str(folder / "base"), tuned=str(folder / "tuned"), prompts=asked, out=folder / "run", options=CPU)
    assert part in str(ended.value)
    page = folder / "run/report.html"
    assert page.exists() == (fault in BEGUN)
    assert not list(folder.glob("run/manifest.json")), "no run has finished"
    if page.exists():
        written = page.read_text(encoding="utf-8")
        (alert,) = re.findall(r'<p class="alert">(.*?)</p>', written)
        assert re.match(r"This run stopped after \d+ of \d+ tasks, at selfcheck \(", alert)
        assert part in html.unescape(alert), "the page says why there is no number on it"
        assert not re.findall(r'<section id="[\w.]+" class="(?:effect|none|plain)">', written.partition('<section id="trust"')[0])
    assert str(ended.value) in refused(folder, prompts=prompts, policy=policy)


def test_a_tuned_model_without_a_template_reads_the_base_s_and_is_said_to(folder: Path) -> None:
    (folder / "tuned" / "chat_template.jinja").unlink()
    found = checked(folder, prompts=folder / "p.jsonl")
    assert [one for one in found if one.verdict == "fail"] == []
    assert "The tuned model has no chat template: both models read the prompts in the base model's." in [one.said for one in found]


def test_without_prompts_it_asks_those_that_ship(folder: Path) -> None:
    found = checked(folder)
    assert [one for one in found if one.verdict == "fail"] == []
    assert "rendered, of" in said(found, "prompts")
    assert "no unrelated prompts" not in said(found, "left out"), "steering brings its own, and these are none of them"
    (folder / "tuned" / "chat_template.jinja").write_text("hello")
    assert ["does not print the user's text" in one for one in refused(folder)] == [True]


def test_another_base_that_is_not_there_is_no_fault_of_the_pair(folder: Path) -> None:
    found = checked(folder, alternatives=(str(folder / "nowhere"),))
    assert [one for one in found if one.verdict == "fail"] == []
    assert "nowhere: no such model" in said(found, "lineage")


def test_one_fault_does_not_hide_the_next(folder: Path) -> None:
    (folder / "tuned" / "chat_template.jinja").write_text("hello")
    tensors(folder / "base", _nan)
    first, *others = refused(folder)
    assert "does not print the user's text" in first
    assert ["NaN or infinite" in one for one in others] == [True, True], "in the files, and in the model that runs"


@pytest.mark.parametrize("change", [adapter, lambda f: config(f / "tuned", rms_norm_eps=1e-3)], ids=["adapter", "another epsilon"])
def test_what_passes_runs(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    assert refused(folder, prompts=folder / "p.jsonl") == []
    names = {"base": str(folder / "base"), "tuned": str(folder / "tuned"), "prompts": folder / "p.jsonl"}
    finished = run(**names, out=folder / "run", options=CPU, measures=["divergence", "grafting"])
    assert finished.manifest()["status"] == "finished"


def test_a_line_says_of_each_model_what_it_is_and_what_will_be_left_out(folder: Path) -> None:
    config(folder / "tuned", rms_norm_eps=1e-3)
    found = checked(folder, prompts=folder / "p.jsonl")
    count = sum(parameter.numel() for parameter in pico("llama").net.parameters())
    assert f"llama: 4 blocks, d_model 32, 4 heads, 2 key-value heads, vocabulary 259; {count:,} parameters; sites" in said(found, "base")
    assert "grafting: the two differ in more than weights" in said(found, "left out")
    hybrid = make_net(CONFIGS["lfm2"](), seed=0)
    for side in ("base", "tuned"):
        shutil.rmtree(folder / side)
        save(hybrid, byte_tokenizer(CHATML), folder / side)
    found = checked(folder, prompts=folder / "p.jsonl")
    assert "lfm2" in said(found, "base")
    assert "it has no z" in said(found, "base")
    assert "heads: some of these models' blocks mix tokens by something else than attention" in said(found, "left out")


def test_tensors_for_which_the_network_has_no_place_are_said(folder: Path) -> None:
    """Biases in the files of a model whose config has none: transformers runs without them."""

    def biased(held: dict[str, torch.Tensor]) -> None:
        held["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
        held["model.layers.0.self_attn.k_proj.bias"] = torch.zeros(16)

    tensors(folder / "tuned", biased)
    found = checked(folder, prompts=folder / "p.jsonl")
    assert [one for one in found if one.verdict == "fail"] == []
    assert "hold 1 tensors that are not 0 and for which its network has no place, the first model.layers.0.self_attn.q_proj.bias" in said(
        found, "tuned"
    )
    names = {"base": str(folder / "base"), "tuned": str(folder / "tuned"), "prompts": folder / "p.jsonl"}
    finished = run(**names, out=folder / "run", options=CPU, measures=["divergence"])
    assert [one for one in finished.manifest()["warnings"] if "hold 1 tensors that are not 0" in one]
