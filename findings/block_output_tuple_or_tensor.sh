#!/bin/sh
# `block.output[0]` is the hidden states in one family and the first text of the batch in another.
#
# Packages: torch 2.13.0, transformers 5.23.0, nnsight 0.8.1 (a plain forward hook behaves the same).
# Guess: a decoder block returns a tuple whose first entry is the hidden states [text, token, feature]; every tutorial
#   on hooks says `output[0]`.
# Behaviour: Llama's, Gemma 2's, GPT-2's and GPT-NeoX's blocks return the tensor itself, so that `output[0]` is the first text.
#   Bloom's, Falcon's and GPT-J's blocks return a tuple, and so do all attention modules. `output[0][:] = 0`
#   therefore ablates one text of the batch, and `output[0][:, -1]` is a feature of every token rather than the last token.
#   No shape disagrees, so nothing is raised.
# Hurt: who patches, steers or ablates by code written for another family or an older release: most of the batch is untouched
#   and counts as "no effect", and a sweep over families compares two different interventions.
# Instead: take `output[0] if isinstance(output, tuple) else output`, and check that writing a state back changes nothing
#   while writing zeros changes every text.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, nnsight 0.8.1
#   family      block returns   texts of 4 that zeros in output[0][:] reach   tokens of 7 that zeros in output[0][:, -1] reach
#   llama       Tensor                           1                                                  7
#   gemma2      Tensor                           1                                                  7
#   gpt2        Tensor                           1                                                  7
#   gpt_neox    Tensor                           1                                                  7
#   bloom       tuple                            4                                                  1
#   falcon      tuple                            4                                                  1
#   gptj        tuple                            4                                                  1
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 nnsight==0.8.1
cd "$work"
cat > shown.py <<'PY'
import importlib.metadata
import sys

import nnsight
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

versions = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "transformers", "nnsight")]
print(", ".join(versions))
common = dict(vocab_size=99, hidden_size=32, num_attention_heads=4, num_hidden_layers=3)
gated = dict(intermediate_size=64, num_key_value_heads=2, head_dim=8)
families = {  # sizes, and the place of the blocks
    "llama": (gated, "model.layers"),
    "gemma2": (gated, "model.layers"),
    "gpt2": ({}, "transformer.h"),
    "gpt_neox": (dict(intermediate_size=64), "gpt_neox.layers"),
    "bloom": ({}, "transformer.h"),
    "falcon": ({}, "transformer.h"),
    "gptj": (dict(rotary_dim=8), "transformer.h"),
}
ids = torch.randint(3, 99, (4, 7), generator=torch.Generator().manual_seed(1))
tensors = set()
print("family      block returns   texts of 4 that zeros in output[0][:] reach   tokens of 7 that zeros in output[0][:, -1] reach")
for family, (sizes, place) in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **sizes)).float().eval()
    traced = nnsight.NNsight(model)
    block = traced.get(place)[1] if hasattr(traced, "get") else None
    kept = []
    hook = model.get_submodule(place)[1].register_forward_hook(lambda module, args, out: kept.append(type(out).__name__))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        hook.remove()
        with traced.trace(input_ids=ids):
            block.output[0][:] = 0
            zeros = traced.output.logits.save()
        with traced.trace(input_ids=ids):
            block.output[0][:, -1] = 0
            last = traced.output.logits.save()
    texts = int((zeros != plain).any(-1).any(-1).sum())
    tokens = int((last != plain)[0].any(-1).sum())
    tensors |= {family} if (kept[0], texts, tokens) == ("Tensor", 1, 7) else set()
    if family not in tensors and (kept[0], texts, tokens) != ("tuple", 4, 1):
        sys.exit(f"the behaviour has changed: {family} {kept[0]} {texts} {tokens}")
    print(f"{family:11} {kept[0]:13} {texts:20} {tokens:50}")
sys.exit(0 if tensors == {"llama", "gemma2", "gpt2", "gpt_neox"} else f"the behaviour has changed: {sorted(tensors)}")
PY
"$work/venv/bin/python" -W ignore shown.py
