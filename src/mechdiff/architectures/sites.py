"""A site is a named place in a model, read and written by the same name. No torch here.

What each kind holds, at one position of one block:

| kind | content | width |
|---|---|---|
| `resid_pre` | the residual stream as it enters the block | d_model |
| `z` | the input of the attention output projection, heads side by side | n_heads * d_head |
| `attn_proj` | the projection's output, before any post-norm; a head's unit is its contribution `z_h W_O^h` here | d_model |
| `attn_out` | what attention adds to the residual stream, after any post-norm | d_model |
| `resid_mid` | the residual stream between attention and MLP; absent where both are added in parallel | d_model |
| `mlp_out` | what the MLP adds to the residual stream, after any post-norm | d_model |
| `resid_post` | the residual stream as it leaves the block | d_model |

Where blocks differ in how wide their heads are, each head's part of `z` is as wide as the widest, with zeros behind what a narrower one has.

Where several residual streams run side by side (hyper-connections, AltUp), a state of `resid_pre` and `resid_post` is all of them, n_streams *
d_model wide, and `attn_out` and `mlp_out` are what the halves give before it is weighed into each stream; there is no `resid_mid`.
"""

import re
from dataclasses import dataclass
from functools import total_ordering

from mechdiff.errors import StudyError

KINDS = ("resid_pre", "z", "attn_proj", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""In the order in which a block computes them."""

_PATTERN = re.compile(r"L(\d+)\.(\w+)")


@total_ordering
@dataclass(frozen=True)
class Site:
    """A place in a model: block `layer` (from 0) and `kind`. Sorts in the order of computation."""

    layer: int
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.layer < 0:
            raise StudyError(f"no such site: layer {self.layer}, kind {self.kind!r}. Kinds: {', '.join(KINDS)}; layers count from 0.")

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that `text` names, as in "L24.resid_post"."""
        found = _PATTERN.fullmatch(text)
        if not found:
            raise StudyError(f"{text!r} is not a site. Write it as L<layer>.<kind>, for example L24.resid_post; kinds: {', '.join(KINDS)}.")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"L{self.layer}.{self.kind}"

    def __lt__(self, other: "Site") -> bool:
        return (self.layer, KINDS.index(self.kind)) < (other.layer, KINDS.index(other.kind))
