#!/bin/sh
# The same tokenizer files give one set of token ids in a model's folder and another in its adapter's folder.
#
# Packages: transformers 5.23.0, tokenizers 0.23.3.
# Guess: tokenizer.json says how text is cut; a byte-for-byte copy of it, with its tokenizer_config.json, cuts text the same way wherever it lies.
# Behaviour: `AutoTokenizer` chooses the class that reads the files by `model_type` in the folder's config.json. Under `qwen2` it is
#   `Qwen2Tokenizer`, whatever `tokenizer_class` the files name, and that class keeps vocabulary and merges and puts its own normaliser (NFC) and
#   splitting pattern in the place of the file's. An adapter's folder has no config.json: there the files are read as they are. Which model
#   families do this is a list in transformers; of public checkpoints some are excepted by name, and a renamed copy is not.
# Hurt: who trains, on a Qwen2 body, a model with a tokenizer of another pattern (as the distilled Qwen models have it): base and adapter
#   read other tokens for the same prompt, and the difference of the two is called the fine-tune's. A server that reads tokenizer.json itself
#   feeds the model tokens that it never saw in training with transformers, or the reverse.
# Instead: hold `AutoTokenizer`'s ids against `tokenizers.Tokenizer.from_file` on your own prompts; read an adapter's tokenizer with
#   `AutoTokenizer.from_pretrained(adapter, config=AutoConfig.from_pretrained(base))`.
#
# Output seen:
#   transformers 5.23.0, tokenizers 0.23.3
#   files beside the model and beside the adapter: the same bytes
#   reader                          class                  tokens of 'It costs 1234 and 5678.'
#   tokenizer.json itself           -                      It| costs| |1234| and| |5678|.
#   AutoTokenizer, the model        Qwen2Tokenizer         It| costs| |1|2|3|4| and| |5|6|7|8|.
#   AutoTokenizer, the adapter      TokenizersBackend      It| costs| |1234| and| |5678|.
#   the adapter, config of the base Qwen2Tokenizer         It| costs| |1|2|3|4| and| |5|6|7|8|.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile tokenizers==0.23.3 transformers==5.23.0 jinja2==3.1.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import json
import pathlib
import shutil
import sys

import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoTokenizer

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
text = "It costs 1234 and 5678."
rules = Tokenizer(models.BPE())
words = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\p{N}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
rules.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
rules.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
rules.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
model, adapter = pathlib.Path("model"), pathlib.Path("adapter")
for folder in (model, adapter):
    folder.mkdir()
rules.save("model/tokenizer.json")
(model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast"}))
(model / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(model / name, adapter / name)
same = all((model / name).read_bytes() == (adapter / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json"))
print(f"files beside the model and beside the adapter: {'the same bytes' if same else 'not the same'}")
file = Tokenizer.from_file("model/tokenizer.json")
readers = {
    "AutoTokenizer, the model": AutoTokenizer.from_pretrained("model"),
    "AutoTokenizer, the adapter": AutoTokenizer.from_pretrained("adapter"),
    "the adapter, config of the base": AutoTokenizer.from_pretrained("adapter", config=AutoConfig.from_pretrained("model")),
}
print("reader                          class                  tokens of 'It costs 1234 and 5678.'")
seen = {"tokenizer.json itself": file.encode(text).ids}
print(f"{'tokenizer.json itself':31} {'-':22} {'|'.join(file.decode([i]) for i in seen['tokenizer.json itself'])}")
for name, reader in readers.items():
    seen[name] = reader(text, add_special_tokens=False)["input_ids"]
    print(f"{name:31} {type(reader).__name__:22} {'|'.join(file.decode([i]) for i in seen[name])}")
by_file, of_model, of_adapter, mended = seen.values()
there = of_model != by_file and of_adapter == by_file and mended == of_model
sys.exit(0 if there else f"the behaviour has changed: {seen}")
PY
