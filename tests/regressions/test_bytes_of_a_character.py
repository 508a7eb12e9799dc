"""A token that is part of a character is called by its byte. Each of them used to be shown as the same sign of a missing character."""

import json
from pathlib import Path
from typing import Any

import runs
from mechdiff.measures.catalogue import make_study
from mechdiff.prompts.vocabularies import vocabulary_of
from mechdiff.store.record import plain
from tokenizers_made import byte_tokenizer

TEXT = "Қазақ №{} тілі"
MEASURES: list[Any] = [
    {"divergence": {"over_text": True, "continuation": 3}},
    {"weights": {"input_prompts": 0}},
    {
        "heads": {
            "layers": [1],
            "closer": [1],
            "top": 2,
            "picks": 1,
            "draws": 1,
            "permutations": 2,
            "network_draws": 0,
            "attention_prompts": 1,
        }
    },
]


def test_bytes_that_follow_one_another_are_the_character_and_alone_they_are_named() -> None:
    tokenizer = byte_tokenizer()
    vocabulary, ids = vocabulary_of(tokenizer), tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert vocabulary.text(*ids) == TEXT
    assert [vocabulary.text(i) for i in ids[:2]] == ["<0xD2>", "<0x9A>"]
    assert vocabulary.text(ids[0], ids[0], *ids[:2]) == "<0xD2><0xD2>Қ"
    assert vocabulary.text(ids[0], tokenizer.eos_token_id, ids[1]) == f"<0xD2>{tokenizer.eos_token}<0x9A>"
    assert "".join(vocabulary.text(i) for i in ids) == "".join(f"<0x{b:02X}>" if b > 127 else chr(b) for b in TEXT.encode())


def test_no_token_of_a_record_is_a_sign_of_a_missing_character(pair: Path, tmp_path: Path) -> None:
    """Of both models' texts, of directions of weights, and of what heads look at."""
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"p{i}", "text": TEXT.format(i)}) + "\n" for i in range(9)))
    asked = {"pair": {"base": str(pair / "base"), "tuned": str(pair / "tuned")}, "prompts": {"file": str(prompts)}, "measures": MEASURES}
    _, record = runs.execute(make_study(asked), tmp_path / "run", device="cpu")
    record = json.loads(json.dumps(plain(record)))
    named = {
        "texts": [token["text"] for one in record["texts"] for token in one["tokens"]],
        "weights": [text for one in record["weights"]["decoded"] for end in ("up", "down") for text in one[end]],
        "heads": [text for one in record["heads"]["attention"] for side in ("base", "tuned") for text, _ in one[side]],
        "patterns": record["heads"]["attention_patterns"]["tokens"],
    }
    for where, tokens in named.items():
        assert any(token.startswith("<0x") for token in tokens), where
        assert not any("\ufffd" in token for token in tokens), where
