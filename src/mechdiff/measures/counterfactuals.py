"""The rows of many counterfactual runs: each prompt under each variant, by every metric of outcome.py.

What all causal measures share: a measure says what is written where (variants) and what each of them is called (labels); here the model runs,
and the laws that come out are held against the clean laws of both models.
"""

from collections.abc import Iterator, Sequence

import polars as pl
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.activations import Clean
from mechdiff.engine.models import Model
from mechdiff.engine.replay import Engine, Variant
from mechdiff.measures.outcome import outcomes
from mechdiff.rows import KEY, rows


def run_variants(
    model: Model,
    engine: Engine,
    cleans: Sequence[Clean],
    variants: Sequence[Variant],
    labels: pl.DataFrame,
    *,
    base_logits: Float[Tensor, "prompt vocab"],
    tuned_logits: Float[Tensor, "prompt vocab"],
    prompt_ids: Sequence[str],
    max_rows: int,
    floor: bool = False,
) -> pl.DataFrame:
    """Rows of every metric for each prompt and variant; `labels` has one row a variant, with some of the key columns.

    No pass has more than about `max_rows` rows. `floor` adds the unedited row of the first pass, control `no_op`.
    """
    own, other = (tuned_logits, base_logits) if model.side == "tuned" else (base_logits, tuned_logits)
    n_prompts = len(cleans)
    frames = []
    for part in chunks(len(variants), max(1, max_rows // n_prompts - 1)):
        logits = engine(model, cleans, variants[part])[..., : own.shape[-1]]
        found = outcomes(logits, own, other, tuned_clean=tuned_logits, base_clean=base_logits)
        named = {name: labels[name][part].to_list() * n_prompts for name in labels.columns}
        prompts = [prompt for prompt in prompt_ids for _ in range(part.start, part.stop)]
        for metric, values in found.items():
            frames.append(rows(values[:, 1:].flatten().numpy(), metric=metric, prompt=prompts, **named))
            if floor and part.start == 0:
                constant = {name: labels[name][0] for name in ("measure", "direction", "split")}
                frames.append(rows(values[:, 0].numpy(), metric=metric, prompt=list(prompt_ids), control="no_op", **constant))
    return pl.concat(frames)


def chunks(n: int, most: int) -> Iterator[slice]:
    """Slices of `n` things, as equal as can be, none longer than `most`."""
    count = -(-n // most)
    return (slice(i * n // count, (i + 1) * n // count) for i in range(count))


def labelled(n: int, **columns: object) -> pl.DataFrame:
    """Labels of `n` variants from key columns, each a list or one value for all; absent ones are null."""
    frame = rows([0.0] * n, **columns)
    return frame.select([name for name in KEY if name not in ("prompt", "metric")])
