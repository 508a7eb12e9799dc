#!/bin/sh
# tokenizer.json keeps truncation and padding of the last call before it was saved, for some readers and not for others.
#
# Packages: transformers 5.23.0, tokenizers 0.23.3.
# Guess: truncation and padding are arguments of one call; a saved tokenizer is a vocabulary and rules, and every reader of
#   tokenizer.json cuts a text the same way.
# Behaviour: a call with `truncation=True, max_length=8, padding="max_length"` sets both in the tokenizer, and `save_pretrained` writes them.
#   `AutoTokenizer` sets them back at its first call. `tokenizers.Tokenizer.from_file`, which servers and tools in other languages
#   use, obeys the file: every text is cut or filled up to 8 tokens; so is `backend_tokenizer.encode` of a freshly loaded one.
# Hurt: who fine-tunes with fixed lengths and saves the tokenizer beside the weights: the tuned model is served cut prompts, the base
#   (with its own file) whole ones, and the difference is called forgetting. Two tokenizers of one
#   vocabulary compared through the file differ, though nothing was trained.
# Instead: `backend_tokenizer.no_truncation()` and `no_padding()` before saving and after `from_file`.
#
# Output seen:
#   transformers 5.23.0, tokenizers 0.23.3
#   base: truncation to None, padding None
#   tuned: truncation to 8, padding {'Fixed': 8}
#   reader                   tokens of 12 words, base and tuned   of 3 words, base and tuned
#   AutoTokenizer, called          12       12                         3        3
#   AutoTokenizer, backend         12        8                         3        8
#   Tokenizer.from_file            12        8                         3        8
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
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
vocabulary = {word: i for i, word in enumerate(["<unk>", "<pad>", *(f"w{i}" for i in range(60))])}
rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
rules.pre_tokenizer = pre_tokenizers.Whitespace()
base = PreTrainedTokenizerFast(tokenizer_object=rules, unk_token="<unk>", pad_token="<pad>")
base.save_pretrained("base")
trained = AutoTokenizer.from_pretrained("base")
trained(["w1 w2", "w3 w4 w5"], truncation=True, max_length=8, padding="max_length")
trained.save_pretrained("tuned")
prompts = {"12 words": " ".join(f"w{i}" for i in range(12)), "3 words": "w1 w2 w3"}
readers = {
    "AutoTokenizer, called": lambda folder, text: AutoTokenizer.from_pretrained(folder)(text)["input_ids"],
    "AutoTokenizer, backend": lambda folder, text: AutoTokenizer.from_pretrained(folder).backend_tokenizer.encode(text).ids,
    "Tokenizer.from_file": lambda folder, text: Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids,
}
for folder in ("base", "tuned"):
    file = json.loads(pathlib.Path(folder, "tokenizer.json").read_text())
    print(f"{folder}: truncation to {(file['truncation'] or {}).get('max_length')}, padding {(file['padding'] or {}).get('strategy')}")
seen = {}
print("reader                   tokens of 12 words, base and tuned   of 3 words, base and tuned")
for name, reader in readers.items():
    seen[name] = [len(reader(folder, text)) for text in prompts.values() for folder in ("base", "tuned")]
    print(f"{name:24} {seen[name][0]:8} {seen[name][1]:8} {seen[name][2]:25} {seen[name][3]:8}")
expected = {"AutoTokenizer, called": [12, 12, 3, 3], "AutoTokenizer, backend": [12, 8, 3, 8], "Tokenizer.from_file": [12, 8, 3, 8]}
sys.exit(0 if seen == expected else f"the behaviour has changed: {seen}")
PY
