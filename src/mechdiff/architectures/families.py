"""Each architecture is one row of a table: where its blocks are and which module holds each site. No torch here.

To add a family, add a row to `FAMILIES` under the `model_type` of its config and a tiny config to `tests/pico.py`: every test of the
engine then runs on it (docs/FAMILIES.md says how in twenty lines). A name is never guessed: what the row says must be there when a model is
loaded, or loading fails; and what the sites hold is proved on every run by the self-check. An architecture without a row gets one from its own
network (architecture.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mechdiff.architectures.sites import KINDS
from mechdiff.architectures.sizes import Shape


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of an architecture whose row was proposed: module paths relative to it."""

    places: Mapping[str, tuple[str, str]]
    """Site kind -> (module path, "input" or "output")."""
    attention: tuple[str, ...]
    """The modules that hold the matrices of attention, or of what mixes positions in its place."""
    mlp: tuple[str, ...]
    """Those that hold all others."""
    norm: str | None = None
    """What norms the attention projection's output before it is added."""
    input_norm: str | None = None
    """What norms the residual stream as it enters."""
    mid_norm: str | None = None
    """What norms it between attention and MLP."""
    scale: float = 1.0
    """What attention's and the MLP's outputs are multiplied by before they are added."""
    heads: tuple[int, int] | None = None
    """How many, and how wide the input of the output projection is for each."""
    inputs: tuple[str, ...] = ()
    """The matrices that attention's queries, keys and values are the products of, where each has one of its own."""
    parallel: bool = False
    """Whether copies of a token can stand side by side: all that mixes positions is one attention with keys and values of its own."""
    flat: bool = False
    """As in Family."""
    router: str | None = None
    """The module that chooses each token's experts, where there is one."""
    adds: tuple[str, ...] | None = None
    """The sites whose states, added to `resid_pre`, make `resid_post`; None where no sites do."""
    reasons: tuple[str, ...] = ()
    """Of sites that are left out."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths of one architecture; those inside a block are relative to it."""

    blocks: str = "model.layers"
    projection: str = "self_attn.o_proj"
    """Attention output projection: its input is the site `z`, its output `attn_proj`."""
    input_norm: str | None = "input_layernorm"
    """The block's first norm, which reads the residual stream as it enters (`resid_pre`); None where nothing norms what the block reads."""
    attn_norm: str | None = None
    """Norm between the projection and the residual stream, where there is one: its output is `attn_out`."""
    mid: str | None = "post_attention_layernorm"
    """The module whose input is the residual stream between attention and MLP (`resid_mid`)."""
    mlp: str = "mlp"
    mlp_modules: tuple[str, ...] = ()
    """The modules that the MLP's weights are in, where `mlp` names its last layer alone."""
    mlp_norm: str | None = None
    """Norm between the MLP and the residual stream, where there is one: its output is `mlp_out`."""
    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    """What norms the residual stream behind the last block; empty where nothing does."""
    head: str = "lm_head"
    embed_parts: tuple[str, ...] = ()
    """Other modules that make the first state of the residual stream: a table of positions, a norm."""
    end_parts: tuple[str, ...] = ()
    """Other modules between the last block and the unembedding: what makes one stream of several, a further layer."""
    fused: tuple[str, str] | None = None
    """Queries, keys and values in one matrix: its name beside the projection, and its layout: "stacked" (all queries, all keys, all
    values) or "by_group" (for each key-value head: its queries, its key, its value). None: q_proj, k_proj and v_proj."""
    conv1d: bool = False
    """The blocks' matrices are stored [d_in, d_out], the transpose of what a Linear stores."""
    norm: str = "rms"
    """What a norm does before its gain: "rms", "layer" (also takes the mean out), or "rms_plus_one" (rms, the gain stored less 1)."""
    stored_as: tuple[tuple[str, str], ...] = ()
    """Names that the files have for a module, where they are others: (in the files, in the model)."""
    parallel_flag: str | None = None
    """Config field that, when true, adds attention and MLP in parallel: `resid_mid` then does not exist."""
    mixers: Mapping[str, str] = field(default_factory=dict)
    """Hybrids: `layer_types` of the config whose blocks mix tokens by something else than attention -> its output projection."""
    scale: str | None = None
    """Config field that multiplies what attention and MLP give before it is added to the residual stream."""
    flat: bool = False
    """The MLP half of the block sees its prompts as one `[batch * pos, d]` table."""
    router: str | None = None
    """The module that chooses each token's experts. Blocks without it are dense."""
    latent: bool = False
    """Its cache holds what keys and values are made of anew in each pass (multi-head latent attention), not them."""
    only_if: Mapping[str, Any] = field(default_factory=dict)
    """Config fields and the values that they must have for this row to hold."""
    by_layer: tuple[Block, ...] = ()
    """Of a proposed row: every block by itself, in the place of what is said above of blocks."""
    shape: Shape | None = None
    """Of a proposed row: the sizes that the network shows."""
    opaque: Mapping[str, int] = field(default_factory=dict)
    """Of a proposed row: modules that do not run without numbers, and whether they give a tensor (0) or a tuple (1)."""
    unread: tuple[str, ...] = ()
    """Of a proposed row: modules that text does not reach (what sees images)."""
    streams: int = 1
    """Of a proposed row: how many residual streams run side by side, as in hyper-connections and AltUp. A state of the residual stream is all of
    them."""
    streams_first: bool = False
    """Whether blocks hand them on as [stream, text, position, d]; else as [text, position, stream, d]."""
    tangled: bool = False
    """Of a proposed row: blocks read more of earlier ones than the residual stream (shared keys and values), so no pass can begin in the middle."""

    def as_in(self, other: "Family", name: str) -> str:
        """The name that `other` has for a tensor of this architecture, where the two differ in where the same modules are: a language model by
        itself, and inside a wrapper for images."""
        for part in ("blocks", "embed", "final_norm", "head"):
            ours, theirs = getattr(self, part), getattr(other, part)
            if ours and name.startswith(f"{ours}."):
                return theirs + name.removeprefix(ours)
        return name

    def kinds(self, config: Any) -> list[str]:
        """The site kinds that every block has, in the order of computation."""
        places = [self.places(config, layer) for layer in range(len(self.by_layer) or 1)]
        return [kind for kind in KINDS if all(kind in one for one in places)]

    def norms(self, layer: int) -> tuple[str | None, str | None]:
        """What norms the residual stream as it enters a block, and what between attention and MLP."""
        if self.by_layer:
            return self.by_layer[layer].input_norm, self.by_layer[layer].mid_norm
        return self.input_norm, self.mid if self.mid != self.mlp else None

    def projections(self, layer: int) -> tuple[list[str], str] | None:
        """The matrices of queries, keys and values (all in one, or one each) and the output projection of a block's attention, as module paths inside
        the block; no inputs where a proposed row does not know them; None where the block has no output projection."""
        if self.by_layer:
            block = self.by_layer[layer]
            return (list(block.inputs), block.places["attn_proj"][0]) if "attn_proj" in block.places else None
        beside = self.projection.rpartition(".")[0]
        return [f"{beside}.{part}" for part in ([self.fused[0]] if self.fused else ["q_proj", "k_proj", "v_proj"])], self.projection

    def norm_behind(self, layer: int) -> str | None:
        """What norms the attention projection's output before it is added, where something does."""
        return self.by_layer[layer].norm if self.by_layer else self.attn_norm

    def adds(self, layer: int) -> tuple[str, ...] | None:
        """The sites whose states, added to `resid_pre`, make `resid_post`; None where no sites do."""
        return self.by_layer[layer].adds if self.by_layer else ("attn_out", "mlp_out")

    def head_width(self, layer: int) -> int | None:
        """How wide each head's part of z is in this block; None: as everywhere."""
        heads = self.by_layer[layer].heads if self.by_layer else None
        return heads[1] if heads else None

    def scale_of(self, config: Any, layer: int) -> float:
        """What attention's and the MLP's outputs are multiplied by before they are added to the residual stream."""
        if self.by_layer:
            return self.by_layer[layer].scale
        return float(getattr(config, self.scale)) if self.scale else 1.0

    def parts(self, layer: int = 0) -> tuple[tuple[str, str], ...]:
        """("attn" or "mlp", path of a module inside a block) of every module that holds weights of that half."""
        if self.by_layer:
            block = self.by_layer[layer]
            return (*(("attn", path) for path in block.attention), *(("mlp", path) for path in block.mlp))
        attention = dict.fromkeys(path.rpartition(".")[0] for path in (self.projection, *self.mixers.values()))
        return (*(("attn", path) for path in attention), *(("mlp", path) for path in self.mlp_modules or (self.mlp,)))

    def places(self, config: Any, layer: int = 0) -> dict[str, tuple[str, str]]:
        """Site kind -> (module path inside this block, "input" or "output"); "" is the block itself.

        Hybrids have no `z`: what goes into the projection differs in kind and width from block to block.
        """
        if self.by_layer:
            return dict(self.by_layer[layer].places)
        projection = self.mixers.get(config.layer_types[layer], self.projection) if self.mixers else self.projection
        places = {
            "resid_pre": ("", "input"),
            "z": (projection, "input"),
            "attn_proj": (projection, "output"),
            "attn_out": (self.attn_norm or projection, "output"),
            "mlp_out": (self.mlp_norm or self.mlp, "output"),
            "resid_post": ("", "output"),
        }
        if self.mixers:
            del places["z"]
        if self.mid and not (self.parallel_flag and getattr(config, self.parallel_flag)):
            places["resid_mid"] = (self.mid, "input")
        return places


_LLAMA = Family()
_MIXTURE = Family(router="mlp.gate")
_OLMO = Family(input_norm=None, attn_norm="post_attention_layernorm", mid="mlp", mlp_norm="post_feedforward_layernorm")
_GEMMA = Family(
    attn_norm="post_attention_layernorm", mid="pre_feedforward_layernorm", mlp_norm="post_feedforward_layernorm", norm="rms_plus_one"
)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _MIXTURE,
    "mixtral": Family(router="mlp.gate", stored_as=(("block_sparse_moe", "mlp"),)),
    "gpt_oss": Family(router="mlp.router"),
    "phi3": Family(fused=("qkv_proj", "stacked")),
    "smollm3": _LLAMA,
    "starcoder2": Family(norm="layer"),
    "granite": Family(scale="residual_multiplier"),
    "gemma": Family(norm="rms_plus_one"),
    "olmo": Family(norm="layer"),
    "olmoe": _MIXTURE,
    "qwen2_moe": _MIXTURE,
    "deepseek_v3": Family(router="mlp.gate", latent=True),
    "ernie4_5": _LLAMA,
    "seed_oss": _LLAMA,
    "glm": _LLAMA,
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "glm4": Family(attn_norm="post_self_attn_layernorm", mlp_norm="post_mlp_layernorm"),
    "stablelm": Family(parallel_flag="use_parallel_residual", norm="layer"),
    "cohere": Family(mid=None, norm="layer"),
    "cohere2": Family(mid=None, norm="layer"),
    "phi": Family(projection="self_attn.dense", mid=None, final_norm="model.final_layernorm", norm="layer"),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": Family(
        blocks="transformer.h", projection="attn.c_proj", input_norm="ln_1", mid="ln_2", embed="transformer.wte", final_norm="transformer.ln_f",
        embed_parts=("transformer.wpe",), fused=("c_attn", "stacked"), conv1d=True, norm="layer",
    ),
    "gpt_neox": Family(
        blocks="gpt_neox.layers", projection="attention.dense", embed="gpt_neox.embed_in", final_norm="gpt_neox.final_layer_norm",
        fused=("query_key_value", "by_group"), norm="layer", stored_as=(("embed_out", "lm_head"),), parallel_flag="use_parallel_residual",
    ),
    "falcon": Family(
        blocks="transformer.h", projection="self_attention.dense", embed="transformer.word_embeddings", final_norm="transformer.ln_f",
        fused=("query_key_value", "by_group"), norm="layer", parallel_flag="parallel_attn",
    ),
    "bloom": Family(
        blocks="transformer.h", projection="self_attention.dense", mlp="mlp.dense_4h_to_h", mlp_modules=("mlp",),
        embed="transformer.word_embeddings", embed_parts=("transformer.word_embeddings_layernorm",), final_norm="transformer.ln_f",
        fused=("query_key_value", "by_group"), norm="layer", only_if={"apply_residual_connection_post_layernorm": False},
    ),
    "opt": Family(
        blocks="model.decoder.layers", projection="self_attn.out_proj", input_norm="self_attn_layer_norm", mid="final_layer_norm", mlp="fc2",
        mlp_modules=("fc1", "fc2"), embed="model.decoder.embed_tokens", embed_parts=("model.decoder.embed_positions",),
        final_norm="model.decoder.final_layer_norm", norm="layer", flat=True, only_if={"do_layer_norm_before": True},
    ),
    "qwen3_next": Family(mixers={"linear_attention": "linear_attn.out_proj"}, norm="rms_plus_one", router="mlp.gate"),
    "qwen3_5_text": Family(mixers={"linear_attention": "linear_attn.out_proj"}, norm="rms_plus_one"),
    "lfm2": Family(
        projection="self_attn.out_proj", mixers={"conv": "conv.out_proj"}, input_norm="operator_norm", mid="ffn_norm", mlp="feed_forward",
        final_norm="model.embedding_norm",
    ),
}  # fmt: skip


def sliding_window(config: Any, layer: int) -> int | None:
    """How many tokens, itself included, a position of this block attends to; None: all before it."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds and kinds[layer] != "sliding_attention"):
        return None
    return int(window)
