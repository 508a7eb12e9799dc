"""What a model reads is held against its tokenizer's file and against what the other model reads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from mechdiff.models.sources import Source, load_tokenizer
from mechdiff.prompts.cuts import said_of_cuts, said_of_file, same_cut
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.sets import Prompt
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of
from pico import CONFIGS, make_net, save
from tokenizers_made import bpe_tokenizer

TEXTS = ["It costs 1234 and 5678.", "cafe\u0301 12", "plain words"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 `base` whose tokenizer.json splits and normalises otherwise than transformers' class for that architecture, and an `adapter`'s folder
    with the same tokenizer files."""
    folder = tmp_path_factory.mktemp("qwen")
    save(make_net(CONFIGS["qwen2"](), seed=0), bpe_tokenizer(TEXTS * 3, 290, words=False, adds_bos=False), folder / "base")
    (folder / "adapter").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "base" / name, folder / "adapter" / name)
    return folder


def ids_of(tokenizer: Any) -> list[list[int]]:
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]


def test_texts_that_are_cut_otherwise_than_the_file_says_are_counted(qwen: Path) -> None:
    source = Source(ref="m", load=str(qwen / "base"))
    loaded = load_tokenizer(source)
    stated = Tokenizer.from_file(str(qwen / "base" / "tokenizer.json"))
    by_file = [stated.encode(text, add_special_tokens=False).ids for text in TEXTS]
    other = sum(here != there for here, there in zip(ids_of(loaded), by_file, strict=True))
    assert other >= 2
    (said,) = said_of_file(loaded, qwen / "base", TEXTS, "m")
    assert said.startswith(
        f"m: {other} of 3 prompts are not cut as its tokenizer.json says: transformers reads that file by its class Qwen2Tokenizer"
    )
    assert "(first difference: " in said


def test_an_adapter_s_tokenizer_is_read_as_its_base_s(qwen: Path) -> None:
    """The same files gave other ids in an adapter's folder, which has no config.json that names the architecture."""
    base = load_tokenizer(Source(ref="b", load=str(qwen / "base")))
    tuned = load_tokenizer(Source(ref="t", load=str(qwen / "base"), adapter=qwen / "adapter"))
    assert ids_of(tuned) == ids_of(base)
    assert ids_of(AutoTokenizer.from_pretrained(qwen / "adapter")) != ids_of(base), "as transformers reads that folder by itself"


def test_a_tokenizer_that_is_as_its_file_says_is_not_named(tmp_path: Path) -> None:
    """Also with tokens that were added beside the file, and with a truncation that the file keeps."""
    tokenizer = bpe_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(Source(ref="m", load=str(tmp_path)))
    assert said_of_file(loaded, tmp_path, TEXTS, "m") == []
    loaded.add_tokens(["costs"])
    assert said_of_file(loaded, tmp_path, TEXTS, "m") == []
    stated = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stated.enable_truncation(2)
    stated.save(str(tmp_path / "tokenizer.json"))
    assert said_of_file(tokenizer, tmp_path, TEXTS, "m") == []


def read(base: Any, tuned: Any) -> tuple[list[Rendered], Tokens]:
    prompts = [Prompt(id=f"p{i}", text=text) for i, text in enumerate(TEXTS)]
    tokens = shared_tokens(vocabulary_of(base), vocabulary_of(tuned))
    return render(prompts, base, tuned, PromptPolicy(policy="raw"), max_base=99, max_tuned=99), tokens


def test_one_vocabulary_that_two_models_cut_otherwise_is_said() -> None:
    one, other = bpe_tokenizer(TEXTS, 300), bpe_tokenizer(TEXTS, 300)
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    rendered, tokens = read(one, other)
    assert tokens.equal
    assert [same_cut(each, tokens) for each in rendered] == [each.ids_base == each.ids_tuned for each in rendered] == [False, True, True]
    (said,) = said_of_cuts(rendered, tokens)
    assert said.startswith("both models have the same tokens, and cut 1 of 3 prompts into others (the first: 'p0', ")
    assert said_of_cuts(*read(one, one)) == []
