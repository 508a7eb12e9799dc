#!/bin/sh
# A GGUF file that is loaded through transformers rotates its queries and keys otherwise than the file says, without a word.
#
# Packages: torch 2.13.0, transformers 5.23.0, gguf 0.19.0, accelerate 1.15.0 (Llama, StarCoder 2).
# Guess: `from_pretrained(folder, gguf_file=...)` gives the network that was written into the file: its weights are dequantised, so what differs from
#   the original is rounding.
# Behaviour: the tensor `rope_freqs.weight` (every Llama 3.1, 3.2 and 3.3) and the keys `rope.scaling.*` are ignored, and of StarCoder 2 the key
#   `rope.freq_base` as well (its models have 1,000,000 or so; the class's default of 10,000 is taken). Nothing is printed, and the load report is empty.
# Hurt: who fine-tunes, evaluates or compares a GGUF file through transformers. With weights kept in float32, where nothing is rounded, the logits are
#   another model's; a comparison with the original folder shows "the same weights" and other predictions.
# Instead: set `config.rope_parameters` to what the original config.json says and load the folder again, or take the model's safetensors.
#
# Output seen (a text of 60 tokens; longer ones move more under Llama 3.1, whose scaling is of slow frequencies alone):
#   torch 2.13.0, transformers 5.23.0
#   what the file says                       logits moved by (SD)   with the rotation put back   load report empty
#   llama, rope_freqs.weight of Llama 3.1                  0.0275                       0.0000   True
#   llama, rope.scaling linear by 8                        1.1828                       0.0000   True
#   starcoder2, rope.freq_base 1000000                     0.9464                       0.0000   True
#   llama, rope.freq_base 777 (read)                       0.0000                       0.0000   True
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys
from pathlib import Path

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

transformers.utils.logging.disable_progress_bar()
print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
SIZES = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
             max_position_embeddings=131072, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
ids = torch.arange(60).remainder(64)[None]


def network(kind, rope):
    """A random network whose attention depends on position."""
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "starcoder2": Starcoder2Config}[kind](**SIZES, rope_parameters=rope)
    net = {"llama": LlamaForCausalLM, "starcoder2": Starcoder2ForCausalLM}[kind](config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if "_proj.weight" in name else 0.05))
    return net


def write(net, path, keys=lambda writer: None, divisors=None):
    """The file that llama.cpp's converter writes, in float32."""
    config, kind = net.config, net.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if kind == "llama":
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_token_merges([])
    keys(writer)
    names = gguf.get_tensor_name_map({"llama": gguf.MODEL_ARCH.LLAMA, "starcoder2": gguf.MODEL_ARCH.STARCODER2}[kind], config.num_hidden_layers)
    for name, tensor in net.state_dict().items():
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = tensor.reshape(2, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=[".weight", ".bias"]), tensor.contiguous().numpy())
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def moved(net, file):
    """How far the loaded logits are from the written network's, in standard deviations; how far where the right rotation is put back; the report."""
    loaded, report = AutoModelForCausalLM.from_pretrained(".", gguf_file=file, dtype=torch.float32, output_loading_info=True)
    wanted = net(ids).logits
    first = float((loaded.eval()(ids).logits - wanted).std() / wanted.std())
    config = loaded.config
    config.rope_parameters = net.config.rope_parameters
    again = type(loaded)(config).eval()
    again.load_state_dict(loaded.state_dict())
    second = float((again(ids).logits - wanted).std() / wanted.std())
    return first, second, not any(report.values())


def scaled(writer):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


cases = {}
net = network("llama", LLAMA3)
size = net.model.rotary_emb.inv_freq.numel()
plain = 500000.0 ** (-torch.arange(size, dtype=torch.float64) / size)
write(net, "llama3.gguf", divisors=(plain / net.model.rotary_emb.inv_freq.double()).float())
cases["llama, rope_freqs.weight of Llama 3.1"] = moved(net, "llama3.gguf")
net = network("llama", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0})
write(net, "linear.gguf", scaled)
cases["llama, rope.scaling linear by 8"] = moved(net, "linear.gguf")
net = network("starcoder2", {"rope_type": "default", "rope_theta": 1000000.0})
write(net, "starcoder2.gguf")
cases["starcoder2, rope.freq_base 1000000"] = moved(net, "starcoder2.gguf")
net = network("llama", {"rope_type": "default", "rope_theta": 777.0})
write(net, "plain.gguf")
cases["llama, rope.freq_base 777 (read)"] = moved(net, "plain.gguf")
print(f"{'what the file says':40} logits moved by (SD)   with the rotation put back   load report empty")
for name, (first, second, empty) in cases.items():
    print(f"{name:40} {first:>20.4f}   {second:>26.4f}   {empty}")
*lost, read = cases.values()
sys.exit(not (all(first > 0.01 and second < 1e-4 and empty for first, second, empty in lost) and read[0] < 1e-4))
PY
