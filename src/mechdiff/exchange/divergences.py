"""How differently do the two models read each item of an evaluation? From a finished run where it has the prompt, or measured.

    kl_nats = KL(tuned || base) of the next token after the item's prompt, in nats (of the tokens that both models have)

The same number as D of a run (`measures/divergence/formula.py`). An item is one of a run's prompts where its text is: rendered as the models read
it, or bare, or as the last thing that the user said. Prompts that are measured are read as they stand in the log, without a template of ours.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from mechdiff.errors import RunError
from mechdiff.exchange.logs import Item, Logged
from mechdiff.rows import where
from mechdiff.statistics import floors
from mechdiff.store.tables import read_manifest, read_prompts, read_rows

TOGETHER = 64
"""Prompts whose next-token distributions are held at a time."""

Divergences = dict[tuple[str, str], float]
"""Nats by task and item."""


def of_run(run: str | Path, logs: dict[str, Logged]) -> Divergences:
    """What a finished run measured of the items that it read. RunError where it read none of them."""
    folder = Path(run)
    rows = read_rows(folder)
    measured = where(rows, measure="divergence", control=None, unit=None, metric=floors.d_metric(rows)).filter(
        pl.col("prompt").is_not_null()
    )
    d = {(split, prompt): value for split, prompt, value in measured.select("split", "prompt", "value").iter_rows()}
    known: dict[str, float] = {}
    for one in read_prompts(folder):
        if (one["split"], one["id"]) in d:
            known |= {one[name].strip(): d[one["split"], one["id"]] for name in ("text_base", "text_tuned") if name in one}
    for said in (read_manifest(folder).get("behaviour") or {}).get("texts") or []:
        if (said["split"], said["prompt"]) in d:
            known.setdefault(said["text"].strip(), d[said["split"], said["prompt"]])
    found = {key: known[text] for key, texts in _texts(logs) if (text := next((one for one in texts if one in known), None)) is not None}
    if not found:
        raise RunError(
            f"{folder}: this run read none of the items' prompts, as they stand in the logs. Give --base and --tuned, so that they are measured."
        )
    return found


def _texts(logs: dict[str, Logged]) -> Iterator[tuple[tuple[str, str], list[str]]]:
    for task, log in logs.items():
        for name, item in log.items.items():
            asked = [text for role, text in item.messages if role == "user"]
            yield (task, name), [item.prompt.strip(), *(text.strip() for text in asked[-1:])]


def measured(
    base: str, tuned: str, logs: dict[str, Logged], *, dtype: str = "float32", device: str = "auto", trusted: tuple[str, ...] = ()
) -> Divergences:
    """The same of every item, by one pass of each model over its prompt. Raises ModelError and PromptError for what does not fit."""
    from mechdiff.engine.distributions import kl_nats
    from mechdiff.engine.reading import read_apart
    from mechdiff.models.pair import SIDES, open_pair
    from mechdiff.prompts.vocabularies import shared_tokens, vocabulary_of

    pair = open_pair(base, tuned, dtype=dtype, device=device, trusted=trusted)
    rows = {f"rows_{side}": pair.config(side).get_text_config().vocab_size for side in SIDES}
    tokens = shared_tokens(*(vocabulary_of(pair.tokenizer(side)) for side in SIDES), **rows)
    every = [((task, name), item) for task, log in logs.items() for name, item in log.items.items()]
    found: Divergences = {}
    for part in _parts(every, len(every) if pair.one_at_a_time else TOGETHER):
        ids = {side: [_read(pair.tokenizer(side), pair.tokenizer("tuned"), item) for _, item in part] for side in SIDES}
        logits = {}
        for side in SIDES:
            with pair.use(side) as model:
                logits[side] = [tokens.shared(one.logits.float(), side).cpu() for one in read_apart(model, ids[side])]
        for (key, _), b, t in zip(part, logits["base"], logits["tuned"], strict=True):
            found[key] = float(kl_nats(t, b))
    return found


def _parts(items: list[tuple[tuple[str, str], Item]], size: int) -> Iterable[list[tuple[tuple[str, str], Item]]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _read(tokenizer: Any, template: Any, item: Item) -> list[int]:
    """Token ids: turns by the tuned model's template, a text as it is, with one beginning-of-sequence token at most."""
    if item.messages and item.prompt == "\n".join(text for _, text in item.messages) and template.chat_template:
        turns = [{"role": role, "content": text} for role, text in item.messages]
        text = template.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = tokenizer.bos_token or ""
    text = item.prompt.removeprefix(start) if start else item.prompt
    return list(tokenizer(text, verbose=False)["input_ids"])
