"""What a user saw: a measure that was asked for and gave nothing, in no word of the terminal; prompts rendered by another tool with a template put
around them; a run of a mixture of experts that ended at a fifth of its work; right answers called wrong by `verify`."""

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from transformers import GenerationConfig

from mechdiff.audit.rerun import Rerun
from mechdiff.cli.printing import show_run
from mechdiff.measures.behaviour.verify import answers, plainly
from mechdiff.measures.catalogue import EXPERIMENTS
from mechdiff.models.modules import not_in_files
from mechdiff.models.pair import open_pair
from mechdiff.study.config import RunOptions
from mechdiff.study.run import silent
from pico import moved, pico, save, twin
from runs import run
from small_studies import study
from tokenizers_made import CHATML, EOS, byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def pair(folder: Path, family: str = "llama") -> dict[str, str]:
    base = pico(family)
    save(base.net, byte_tokenizer(CHATML), folder / "base")
    save(twin(base, moved).net, byte_tokenizer(CHATML), folder / "tuned")
    return {side: str(folder / side) for side in ("base", "tuned")}


def test_a_measure_that_was_asked_for_and_gave_no_row_is_named_on_the_terminal_in_the_record_and_on_the_page(tmp_path: Path) -> None:
    models = pair(tmp_path)
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False)
    shutil.rmtree(tmp_path / "tuned")
    peft.get_peft_model(pico("llama").net, config).save_pretrained(tmp_path / "tuned")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": f"What is {i}?"}) + "\n" for i in range(8)))
    options = RunOptions(device="cpu")
    done = run(**models, prompts=tmp_path / "p.jsonl", out=tmp_path / "run", options=options, measures=["divergence", "weights"])
    assert done.rows().filter(measure="weights").is_empty()
    (skipped,) = [one for one in done.manifest()["skipped"] if one["what"] == "weights"]
    assert "its change is not compared" in skipped["why"]
    shown = StringIO()
    show_run(done, Console(file=shown, width=200))
    assert "skipped weights: this adapter" in shown.getvalue()
    checks = done.report().read_text().partition('<section id="trust"')[2].partition("</section>")[0]
    assert "Limits and checks" in checks
    assert "<b>weights</b>: this adapter" in checks
    assert "its change is not compared" in checks


def test_any_measure_without_a_row_is_named() -> None:
    import polars as pl

    rows = pl.DataFrame({"measure": ["divergence", "patching"]})
    there = [{"what": "factorial at all positions", "why": "x"}, {"what": "similarity: procrustes", "why": "y"}]
    asked = ["divergence", "weights", "similarity", "patching", "factorial"]
    assert [one["what"] for one in silent(asked, rows, there)] == ["weights"]


def test_prompts_in_another_tool_s_chat_format_are_warned_of(tmp_path: Path) -> None:
    models = pair(tmp_path)
    texts = [f"<|user|>\nWhat is {i}?{EOS}\n<|assistant|>\n" for i in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = RunOptions(device="cpu")
    done = run(**models, prompts=tmp_path / "p.jsonl", out=tmp_path / "run", options=options, measures=["divergence"])
    (said,) = [one for one in done.manifest()["warnings"] if "in a chat format already" in one]
    assert said.startswith("8 of 8 prompts are in a chat format already (the first, ")


def test_experts_that_cannot_be_read_again_are_left_out_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers writes them one by one and runs them in one tensor, so that with one model in memory grafting found no such tensor."""
    models = pair(tmp_path, "mixtral")
    opened = open_pair(**models, device="cpu")
    name = not_in_files(tmp_path / "tuned", opened.weights("tuned").tensors)
    assert name
    monkeypatch.setattr("mechdiff.models.pair.free_memory", lambda device: 0)
    rows, record, _ = study(tmp_path, "tuned", ["divergence", "grafting"])
    assert set(rows["measure"]) == {"divergence"}
    (skipped,) = [one for one in record["skipped"] if one["what"] == "grafting"]
    assert name in skipped["why"]
    assert "Give --memory both" in skipped["why"]


def test_a_dense_model_is_read_again_as_before(tmp_path: Path) -> None:
    models = pair(tmp_path)
    assert not_in_files(tmp_path / "tuned", open_pair(**models, device="cpu").weights("tuned").tensors) is None


def test_an_answer_is_generated_again_without_the_folder_s_own_settings(tmp_path: Path) -> None:
    """A penalty on repetition in generation_config.json is no part of what was recorded."""
    models = pair(tmp_path)
    for folder in models.values():
        GenerationConfig(repetition_penalty=1.9, no_repeat_ngram_size=2, eos_token_id=257, pad_token_id=258).save_pretrained(folder)
    told: dict[str, Any] = {"max_tokens": 8, "openings": 1, "scored_prompts": 0, "scored_layers": 1, "probes": False}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": f"What is {i}?"}) + "\n" for i in range(8)))
    options = RunOptions(device="cpu")
    done = run(**models, prompts=tmp_path / "p.jsonl", out=tmp_path / "run", options=options, measures=[{"behaviour": told}])
    found = answers(Rerun(done.path, EXPERIMENTS))
    assert len(found) >= 4
    assert [recorded for _, _, recorded, _ in found] == [again for *_, again in found]
    net: Any = pico("llama").net
    net.generation_config = GenerationConfig.from_pretrained(models["base"])
    ids = torch.tensor([[5, 6, 7]])
    with plainly(net):
        plain = net.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=257, pad_token_id=0)
    assert net.generation_config.repetition_penalty == 1.9
    one = ids
    for _ in range(plain.shape[1] - 3):  # greedily, by whole forward passes
        one = torch.cat([one, net(one).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(one, plain)
