#!/bin/sh
# Position ids that do not rise by one cut attention in two, and only without a cache.
#
# Packages: torch 2.13.0, transformers 5.23.0 (Llama; the same code serves most decoders).
# Guess: `position_ids` sets rotary angles and nothing else; who attends to whom is the matter of `attention_mask`,
#   and no mask means plain causal attention. `use_cache` decides what is kept and never what is computed.
# Behaviour: with no attention mask and no cache, every place where position ids do not rise by exactly one is taken
#   for the start of another packed text. Tokens after it no longer see tokens before it. A mask of ones, or
#   `use_cache=True`, brings plain causal attention back. Nothing is said in either case.
# Hurt: who studies positions (a token given its neighbour's position, a gap left where a passage was cut out,
#   positions interpolated, all positions equal), and who compares a training forward pass (no cache) with an
#   evaluation (cache): the "effect of position" is mostly that of lost context.
# Instead: pass an attention mask of ones whenever position ids are passed.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   position ids         cache   distance to the pass with a mask of ones (SD of logits)   last token sees the first
#   0 to 19              True          0.0000                                                       True
#   0 to 19              False         0.0000                                                       True
#   one position twice   True          0.0000                                                       True
#   one position twice   False         4.6997                                                      False
#   a gap of five        True          0.0000                                                       True
#   a gap of five        False         4.1978                                                      False
#   every second         True          0.0000                                                       True
#   every second         False         4.7357                                                      False
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
torch.manual_seed(0)
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
for weight in model.parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.3)
ids = torch.randint(3, 99, (1, 20))
other_first = ids.clone()
other_first[0, 0] = (ids[0, 0] + 1) % 99
positions = {
    "0 to 19": torch.arange(20),
    "one position twice": torch.cat([torch.arange(10), torch.arange(9, 19)]),
    "a gap of five": torch.cat([torch.arange(10), torch.arange(15, 25)]),
    "every second": torch.arange(20) * 2,
}


@torch.no_grad()
def logits(tokens, places, **how):
    return model(input_ids=tokens, position_ids=places[None], **how).logits[0]


wrong = []
print("position ids         cache   distance to the pass with a mask of ones (SD of logits)   last token sees the first")
for name, places in positions.items():
    for cache in (True, False):
        masked = logits(ids, places, attention_mask=torch.ones_like(ids), use_cache=cache)
        bare = logits(ids, places, use_cache=cache)
        distance = float((bare - masked).abs().max() / masked.std())
        sees = not torch.equal(bare[-1], logits(other_first, places, use_cache=cache)[-1])
        print(f"{name:20} {cache!s:7} {distance:12.4f} {sees!s:>58}")
        cut = name != "0 to 19" and not cache
        wrong += [name] if (distance > 1) != cut or sees == cut else []
sys.exit(f"the behaviour has changed: {wrong}" if wrong else 0)
PY
