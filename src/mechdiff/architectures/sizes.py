"""The sizes of a model and how many numbers its weights are, as a config states them or a network shows them. No torch here."""

from dataclasses import dataclass
from typing import Any

ENTRY_BYTES = {"float32": (4, 4), "bfloat16": (2, 2), "float16": (2, 2), "int8": (1, 2), "nf4": (0.5 + 4 / 64, 2)}
"""Of an entry of the blocks' matrices, its share of scales included, and of every other weight."""
QUANTIZED = ("int8", "nf4")
"""Dtypes in which matrices are held rounded (quantization.py)."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How many numbers the weights of a network are. A tied tensor counts once."""

    stored: int
    """All of them."""
    active: int
    """Those that one token uses: of experts the share that it is sent to."""
    body: int
    """Of the active ones, those that are neither embedding nor unembedding."""
    rounded: int
    """Of all, those in matrices that `int8` and `nf4` hold rounded."""
    experts: int = 0
    """Of all, those of experts that lie side by side in one tensor, which is no linear layer: never rounded."""
    tensors: tuple[tuple[str, ...], ...] = ()
    """Each parameter of the network by its names: several, where it is tied."""

    def bytes(self, dtype: str) -> int:
        """Memory of the weights in a study's dtype."""
        entry, other = ENTRY_BYTES[dtype]
        return int(self.rounded * entry + (self.stored - self.rounded) * other)

    def said(self, dtype: str) -> str:
        """How many there are, and what of them a quantised dtype leaves as it is."""
        used = f", {self.active:,} of them used by one token" if self.active < self.stored else ""
        kept = f", of which those of the experts ({self.experts:,}) stay bfloat16" if dtype in QUANTIZED and self.experts else ""
        return f"{self.stored:,} parameters{used}{kept}"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model, read from its config."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab: int
    context: int
    """Most tokens of one prompt."""
    streams: int = 1
    """Residual streams that run side by side."""

    def width(self, kind: str) -> int:
        """Width of a site kind's states."""
        if kind == "z":
            return self.n_heads * self.d_head
        return self.d_model * (self.streams if kind.startswith("resid") else 1)

    @property
    def matrices(self) -> int:
        """Parameters of the blocks of a gated-MLP transformer of this shape (an estimate: norms and biases left out)."""
        attention = self.d_model * self.d_head * 2 * (self.n_heads + self.n_kv_heads)
        return self.n_layers * (attention + 3 * self.d_model * self.d_mlp)

    def guessed(self, experts: int = 1, used: int = 1) -> Weights:
        """Of a network of this shape that is not here: the embedding counts once, and of `experts` in each block a token uses some."""
        mlp = 3 * self.n_layers * self.d_model * self.d_mlp
        embedding, many = self.vocab * self.d_model, mlp * experts if experts > 1 else 0
        body = self.matrices + mlp * (used - 1)
        return Weights(
            stored=self.matrices + mlp * (experts - 1) + embedding,
            active=body + embedding,
            body=body,
            rounded=self.matrices - (mlp if many else 0),
            experts=many,
        )


def _key_value_heads(config: Any) -> int:
    """How many sets of keys and values a block has; Falcon says it in fields of its own."""
    if config.model_type == "falcon":
        return config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else config.num_attention_heads
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def stated_shape(config: Any) -> Shape:
    """The sizes that the config of a listed family states."""
    heads = config.num_attention_heads
    mlp = (getattr(config, name, None) for name in ("ffn_hidden_size", "intermediate_size", "n_inner", "ffn_dim"))
    return Shape(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=heads,
        n_kv_heads=_key_value_heads(config),
        d_head=getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads,
        d_mlp=next((size for size in mlp if size), 4 * config.hidden_size),
        vocab=config.vocab_size,
        context=int(getattr(config, "max_position_embeddings", 0) or getattr(config, "seq_length", 1 << 20)),
    )
