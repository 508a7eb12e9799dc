"""Lines of evidence are computed once more: token by token from whole forward passes, features from the recorded texts with plain string search."""

import re
from typing import Any

import numpy as np
import torch

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import whole
from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.measures.words.plan import FEATURE, GAP, LENS, PASSAGE_TOKENS, REPLAY, SEEDS, TOKEN, passages


def again(run: Rerun, row: Row) -> float:
    """The value from whole passes of both models; what takes a random edit, a second draw or a mean over the other half is not recomputed."""
    if row["control"] is not None:
        raise NotRecomputed("null pairs are made during the run")
    if row["metric"] == REPLAY:
        raise NotRecomputed("the vector is a mean over the half that names")
    if row["metric"] in (FEATURE, GAP):
        return _of_texts(run, row)
    line = labels.evidence_of(row["unit"])
    if line.where == "prompts":
        raise NotRecomputed("it is a difference from the mean over everyday questions")
    ranked, token = _ranked(run), _token(run, row)
    if row["metric"] == TOKEN:
        base, tuned = (_rise(run, side, line.where, row["prompt"]) for side in ("base", "tuned"))
    else:
        assert row["metric"] == LENS
        base, tuned = (_lens(run, side, line.where, row) for side in ("base", "tuned"))
    moved = tuned - base
    return float(moved[token] - np.median(moved[ranked]))


def _told(run: Rerun) -> dict[str, Any]:
    found: dict[str, Any] = run.manifest["words"]
    return found


def _ranked(run: Rerun) -> list[int]:
    return list(_told(run)["ranked_tokens"])


def _token(run: Rerun, row: Row) -> int:
    line = labels.evidence_of(row["unit"])
    same = (
        one["token"]
        for one in _told(run)["lines"]
        if (one["where"], one["gained"], one["text"], one["layer"]) == (*line, row["layer"]) and one["token"] is not None
    )
    return int(next(same))


def _ids(run: Rerun, side: str, where: str, name: str) -> list[int]:
    if where.startswith("passages"):
        return list(run.prepared.pair.tokenizer(side)(dict(passages())[name], verbose=False)["input_ids"][:PASSAGE_TOKENS])  # type: ignore[arg-type]
    return list(run.ids(side, SEEDS, name))


def _rise(run: Rerun, side: str, where: str, name: str) -> np.ndarray:
    """Log p of every token: behind each but the first of a passage, on average; at the last of a prompt."""
    key = ("words", side, where, name)
    if key not in run.cached:
        with run.model(side) as model:
            logits = whole.logits(model, _ids(run, side, where, name), everywhere=True)
        laws = run.prepared.tokens.shared(logits, side).log_softmax(-1)
        run.cached[key] = (laws[1:].mean(0) if where == "passages" else laws[-1]).numpy()
    found: np.ndarray = run.cached[key]
    return found


def _lens(run: Rerun, side: str, where: str, row: Row) -> np.ndarray:
    """What the base's last norm and unembedding make of one activation."""
    site = Site(row["layer"], "resid_post")
    with run.model(side) as model:
        states = whole.states(model, _ids(run, side, where, row["prompt"]), [site])[site]
    at = int(where.rpartition(" ")[2]) if where.startswith("passages") else len(states) - 1
    with run.model("base") as model, torch.no_grad():
        norm = model.net.get_submodule(model.family.final_norm) if model.family.final_norm else torch.nn.Identity()
        return model.head(norm(states[at].to(model.device))).double().cpu().numpy()


# ---- texts -------------------------------------------------------------------------------------------------------------------------


def _of_texts(run: Rerun, row: Row) -> float:
    one = next(text for text in _told(run)["texts"] if text["seed"] == row["prompt"])
    if row["metric"] == GAP:
        raise NotRecomputed("likelihoods of drawn texts, which stand in the record as texts and not as tokens")
    line = labels.evidence_of(row["unit"])
    louder = line.where.partition(", ")[2]
    if louder and "base_under_cut" not in one:
        raise NotRecomputed(
            "the run is of a version that kept no text of the base under the cut; run the study anew to verify amplified texts"
        )
    other, base = (one["amplified"][louder], one["base_under_cut"]) if louder else (one["tuned"], one["base"])
    return float(_has(line.text, other, base) - _has(line.text, base, other))


def _has(feature: str, text: str, other: str) -> int:
    """Whether a text has a phrase, at word ends; other features are not looked for again."""
    kind, _, phrase = feature.partition(" “")
    if kind == "ends with":
        raise NotRecomputed("the record does not say which texts ended by themselves and which were cut off")
    if kind not in ("contains", "begins with"):
        if feature.startswith("is longer"):
            return int(len(text) > len(other))
        raise NotRecomputed(f"the feature {feature!r} is no phrase")
    words = [re.escape(word) for word in phrase.removesuffix("”").split()]
    ends = ["(?<!\\w)" if re.match(r"\w", phrase) else "", "(?!\\w)" if re.search(r"\w”?$", phrase) else ""]
    start = r"^\s*" if kind == "begins with" else ""
    return int(re.search(start + ends[0] + r"\s+".join(words) + ends[1], text) is not None)
