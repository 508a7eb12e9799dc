"""Scores of texts and answers are computed once more without the engine."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mechdiff.audit.distributions import LOGITS_APART, NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.divergence.verify import text_ends


def again(run: Rerun, row: Row) -> float:
    """How likely the models find what they do not say has no second way here; what they say has (see `answers`)."""
    raise NotRecomputed("scores of answers; the answers that the record holds are generated again")


def answers(run: Rerun) -> list[tuple[str, str, str, str]]:
    """(prompt, side, recorded, generated again) of the answers that the record holds: transformers' own greedy generation, one prompt at a time.

    One that parts from the recorded answer at a token whose lead over the next is within rounding counts as the recorded one.
    """
    found = []
    record = run.manifest.get("behaviour") or {}
    for one in record.get("texts", []):
        for side in ("base", "tuned"):
            tokenizer = run.prepared.pair.tokenizer(side)
            with run.model(side) as model:
                ends = text_ends(run, model)
                ids = torch.tensor([run.ids(side, one["split"] or "probes", one["prompt"])], device=model.device)
                net: Any = model.net
                with plainly(net):
                    made = net.generate(
                        ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1,
                        max_new_tokens=min(record["max_tokens"], model.shape.context - ids.shape[1]),
                        eos_token_id=sorted(ends), pad_token_id=0, return_dict_in_generate=True, output_logits=True,
                    )  # fmt: skip
                said = made.sequences[0, ids.shape[1] :].tolist()
                kept = said[: next((i for i, token in enumerate(said) if token in ends), len(said))]
                again = str(tokenizer.decode(kept, skip_special_tokens=True))
                texts = (
                    [str(tokenizer.decode(kept[:n], skip_special_tokens=True)) for n in range(1, len(kept) + 1)]
                    if again != one[side]
                    else []
                )
                leads = [made.logits[i][0].float().topk(2).values for i in parting(one[side], texts) if i < len(made.logits)]
                eps = 4 * torch.finfo(model.dtype).eps
                tied = any(first - second <= LOGITS_APART * math.sqrt(2 * run.floor) + eps * first.abs() for first, second in leads)
                found.append((one["prompt"], side, one[side], one[side] if tied else again))
    return found


@contextmanager
def plainly(net: Any) -> Iterator[None]:
    """While open, generation has no settings but those it is called with: else it takes every other one from the folder's generation_config.json, a
    penalty on repetition for one."""
    from transformers import GenerationConfig

    own = net.generation_config
    net.generation_config = GenerationConfig()
    try:
        yield
    finally:
        net.generation_config = own


def parting(recorded: str, texts: Sequence[str]) -> range:
    """The tokens one of which is the first that another text does not share with the recorded one; several, because a character may be spread over
    tokens. `texts` are that other one after each of its tokens."""
    strictly = next((i for i, text in enumerate(texts) if not recorded.startswith(text)), len(texts))
    surely = next((i for i, text in enumerate(texts) if not recorded.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))), len(texts))
    return range(strictly, surely + 1) if texts else range(0)
