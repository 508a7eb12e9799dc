#!/bin/sh
# A Lily adapter gives a text other logits when other texts, or padding, or its own later tokens stand in the pass.
#
# Packages: torch 2.13.0, transformers 5.23.0, peft 0.21.2.
# Guess: an adapter on linear layers is a function of each token alone, as LoRA is: a causal model stays causal, and a text's
#   logits do not depend on the batch.
# Behaviour: Lily's router averages its probabilities over all texts and tokens of the pass and mixes the shared factors by that
#   mean. So a text alone and the same text beside another differ; padding that the attention mask hides counts; the logits of
#   the first tokens change with the tokens behind them; and reading through the cache differs from reading at once.
# Hurt: who evaluates in batches, generates with a cache, scores choices by log-probability, or patches single tokens:
#   numbers change with batch size and order, and "causal" effects of later tokens on earlier ones are real in this network.
# Instead: evaluate one text a pass without padding, say so, and do not compare with adapters that were evaluated otherwise.
#
# Output seen (largest difference of a logit, in standard deviations):
#   torch 2.13.0, transformers 5.23.0, peft 0.21.2
#   adapter   beside another text   with padding   first 6 tokens, 6 more behind   last 6 through the cache
#   lora             0.0000             0.0000                 0.0000                    0.0000
#   lily             0.6500             2.3390                 0.2874                    0.1924
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import peft
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, peft {peft.__version__}")
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=4)
kinds = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "lily": lambda: peft.LilyConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
}
ids = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(1))
text, other = ids[:1], ids[1:]


def apart(one, two):
    """The largest difference of two logits, in standard deviations of the first."""
    return float((one - two).abs().max() / one.std())


found = {}
print("adapter   beside another text   with padding   first 6 tokens, 6 more behind   last 6 through the cache")
for kind, config in kinds.items():
    torch.manual_seed(0)
    model = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), config()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if kind in name:
                weight.normal_(0, 0.5)
        alone = model(input_ids=text).logits
        batch = model(input_ids=ids).logits[:1]
        pad = torch.zeros_like(text)
        mask = torch.cat([torch.zeros_like(text), torch.ones_like(text)], 1)
        places = torch.cat([torch.zeros(1, 12, dtype=torch.long), torch.arange(12)[None]], 1)
        padded = model(input_ids=torch.cat([pad, text], 1), attention_mask=mask, position_ids=places).logits[:, 12:]
        short = model(input_ids=text[:, :6], use_cache=True)
        rest = model(input_ids=text[:, 6:], past_key_values=short.past_key_values).logits
    found[kind] = [apart(alone, batch), apart(alone, padded), apart(alone[:, :6], short.logits), apart(alone[:, 6:], rest)]
    print(f"{kind:9} {found[kind][0]:13.4f} {found[kind][1]:18.4f} {found[kind][2]:22.4f} {found[kind][3]:25.4f}")
sys.exit(0 if max(found["lora"]) < 1e-4 and min(found["lily"]) > 1e-2 else f"the behaviour has changed: {found}")
PY
