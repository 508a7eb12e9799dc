#!/bin/sh
# `logits_to_keep` decides what the upper blocks of a Gemma 4 are given, not only which logits come out.
#
# Packages: torch 2.13.0, transformers 5.23.0.
# Guess: `model(ids, logits_to_keep=1)` saves the product with the unembedding for all positions but the last; the states of
#   every block are those of a pass without it, one for each position.
# Behaviour: where the upper blocks of a Gemma 4 share keys and values with lower ones (`num_kv_shared_layers`, as in the small
#   ones), a number larger than 0 takes all other positions away from those blocks: `hidden_states` and what hooks see are
#   one position long there and whole below, and nothing is said. The logits are the same. A tensor of positions
#   (`logits_to_keep=torch.tensor([-1])`) leaves the blocks whole. In Gemma 3n and Llama they always are.
# Hurt: who reads, steers or patches states at other positions than the last while asking for the last logits: an error of
#   indices, or, counting from the end (`hidden[:, -1]`) or over all positions (a mean, a vector that is added), a number of
#   other positions in the upper blocks than in the lower ones.
# Instead: give the positions as a tensor, or leave `logits_to_keep` out, and assert the length of every block's state.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   20 tokens: positions that leave each block, and the largest distance of the last logits (SD)
#   llama, nothing shared         logits_to_keep=1             20, 20, 20, 20   0.0000
#   llama, nothing shared         logits_to_keep=tensor([-1])  20, 20, 20, 20   0.0000
#   gemma3n_text, 2 blocks share  logits_to_keep=1             20, 20, 20, 20   0.0000
#   gemma3n_text, 2 blocks share  logits_to_keep=tensor([-1])  20, 20, 20, 20   0.0000
#   gemma4_text, nothing shared   logits_to_keep=1             20, 20, 20, 20   0.0000
#   gemma4_text, nothing shared   logits_to_keep=tensor([-1])  20, 20, 20, 20   0.0000
#   gemma4_text, 2 blocks share   logits_to_keep=1             20, 20, 1, 1     0.0000
#   gemma4_text, 2 blocks share   logits_to_keep=tensor([-1])  20, 20, 20, 20   0.0000
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
from transformers import AutoConfig, AutoModelForCausalLM

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
common = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
              head_dim=8, pad_token_id=0)
layers = dict(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8)
per_layer = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=99)
gemma3n = dict(laurel_rank=4, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4)
families = {
    "llama, nothing shared": ("llama", {}),
    "gemma3n_text, 2 blocks share": ("gemma3n_text", layers | per_layer | gemma3n | dict(num_kv_shared_layers=2)),
    "gemma4_text, nothing shared": ("gemma4_text", layers | per_layer | dict(global_head_dim=8)),
    "gemma4_text, 2 blocks share": ("gemma4_text", layers | per_layer | dict(global_head_dim=8, num_kv_shared_layers=2)),
}
ids = torch.randint(3, 99, (1, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def lengths(model, keep):
    """How many positions leave each block, and the last position's logits."""
    seen = []
    handles = [block.register_forward_hook(lambda module, args, out: seen.append((out[0] if isinstance(out, tuple) else out).shape[-2]))
               for block in model.model.layers]
    logits = model(input_ids=ids, **({} if keep is None else {"logits_to_keep": keep})).logits[0, -1]
    for handle in handles:
        handle.remove()
    return seen, logits


cut = []
print("20 tokens: positions that leave each block, and the largest distance of the last logits (SD)")
for name, (family, sizes) in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **sizes)).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    whole, expected = lengths(model, None)
    for keep, words in ((1, "logits_to_keep=1"), (torch.tensor([-1]), "logits_to_keep=tensor([-1])")):
        seen, logits = lengths(model, keep)
        apart = float((logits - expected).abs().max() / expected.std())
        print(f"{name:29} {words:28} {', '.join(map(str, seen)):16} {apart:.4f}")
        cut += [(name, words)] if seen != whole else []
expected_cut = [("gemma4_text, 2 blocks share", "logits_to_keep=1")]
sys.exit(0 if cut == expected_cut else f"the behaviour has changed: {cut}")
PY
