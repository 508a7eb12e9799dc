"""Does a pair fit? Each finding is said on its own, so that one fault does not hide the next."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mechdiff.digits import fixed
from mechdiff.engine.replay import ENGINES, engine_for
from mechdiff.engine.selfcheck import self_check
from mechdiff.models.families import family_of, shape_of
from mechdiff.models.lineage import lineage
from mechdiff.models.pair import Pair, Side
from mechdiff.models.sites import KINDS
from mechdiff.models.sources import resolve
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of

_TEXTS = ("The quick brown fox jumps over the lazy dog.", "How many legs do two spiders and a dog have together? Count them one by one.")
SIDES: tuple[Side, Side] = ("base", "tuned")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "ok", "note" (a study runs, with something to know), or "fail" (it does not)."""

    verdict: Literal["ok", "note", "fail"]
    what: str
    said: str


def check_pair(pair: Pair, alternatives: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Findings on files, families, sizes, tokenizers, templates, lineage (also to other candidate bases), and the engine's self-check.

    Raises ModelError where a model cannot be loaded at all.
    """
    configs = {side: pair.config(side) for side in SIDES}
    shapes = {side: shape_of(config) for side, config in configs.items()}
    for side in SIDES:
        places = family_of(configs[side], pair.source(side).ref).places(configs[side])
        kinds = [kind for kind in KINDS if kind in places]
        shape = shapes[side]
        adapter = ", an adapter on the base" if side == "tuned" and pair.tuned.adapter else ""
        heads = f"{shape.n_heads} heads, {shape.n_kv_heads} key-value heads"
        sizes = f"{shape.n_layers} blocks, d_model {shape.d_model}, {heads}, vocabulary {shape.vocab}"
        yield Finding("ok", side, f"{configs[side].model_type}{adapter}: {sizes}; sites {', '.join(kinds)}")
    same = all(getattr(shapes["base"], size) == getattr(shapes["tuned"], size) for size in ("n_layers", "d_model", "n_heads", "d_head"))
    differ = Finding("note", "sizes", "they differ in depth or width: no state of one fits into the other, so none can be patched in")
    yield Finding("ok", "sizes", "equal") if same else differ
    tokenizers = {side: pair.tokenizer(side) for side in SIDES}
    tokens = shared_tokens(
        *(vocabulary_of(tokenizers[side]) for side in SIDES), rows_base=shapes["base"].vocab, rows_tuned=shapes["tuned"].vocab
    )
    yield _vocabularies(tokens)
    if renamed := tokens.said_of_renamed():
        yield Finding("note", "tokenizers", renamed)
    yield from _templates(tokenizers)
    yield from _lineage(pair, alternatives, tokens)
    yield from _engines(pair, tokenizers)


def _vocabularies(tokens: Tokens) -> Finding:
    said = (
        "next-token laws are compared on the shared tokens beside the mass outside, and by next bytes; "
        if tokens.n_shared < len(tokens)
        else ""
    )
    fits = (
        "" if tokens.equal else f"; {said}no weights are grafted, and no windows of positions patched where the two cut prompts differently"
    )
    return Finding("ok" if tokens.equal else "note", "tokenizers", tokens.said() + fits)


def _templates(tokenizers: dict[Any, Any]) -> Iterator[Finding]:
    base, tuned = (tokenizers[side].chat_template for side in SIDES)
    if not base and not tuned:
        yield Finding("note", "templates", "neither model has a chat template: use prompt policy raw, or same_text with a template file")
    elif not tuned:
        yield Finding("note", "templates", "only the base has one: use prompt policy same_text with template base, or raw")
    elif not base:
        yield Finding("ok", "templates", "only the tuned model has one, and same_text (the default) renders both models' prompts with it")
    else:
        said = "equal" if base == tuned else "they differ; same_text (the default) renders both models' prompts with the tuned one's"
        yield Finding("ok" if base == tuned else "note", "templates", said)


def _lineage(pair: Pair, alternatives: tuple[str, ...], tokens: Tokens) -> Iterator[Finding]:
    found = lineage(pair.base, pair.tuned, [resolve(other) for other in alternatives], tokens, {side: pair.config(side) for side in SIDES})
    distance = "unknown from the files" if found["relative_distance"] is None else f"{fixed(found['relative_distance'])} of the base's size"
    changed = f"{found['changed_tensors']} tensors changed, {found['equal_tensors']} equal to the bit"
    oddities = (("only_base", "only in base"), ("only_tuned", "only in tuned"), ("reshaped_tensors", "of other shape"),
                ("uncompared_tensors", "not compared"))  # fmt: skip
    others = [f"{len(found[name])} {words}" for name, words in oddities if found[name]]
    yield Finding("ok", "lineage", "; ".join([f"weights moved by {distance}", changed, *others]))
    for said in found["functions"]:
        yield Finding("note", "config", f"{said}: no weight, and it changes what is computed")
    if not found["functions"]:
        yield Finding("ok", "config", "both compute the same beside their weights")
    for other in found["alternatives"]:
        far = "unknown" if other["relative_distance"] is None else f"{fixed(other['relative_distance'])} of its size"
        yield Finding("ok", "lineage", f"distance from {other['ref']}: {far}")
    for said in (*found["not_compared"], *found["warnings"]):
        yield Finding("note", "lineage", said)


def _engines(pair: Pair, tokenizers: dict[Any, Any]) -> Iterator[Finding]:
    for side in SIDES:
        ids = [tokenizers[side](text)["input_ids"] for text in _TEXTS]
        name, reason = engine_for(pair.config(side))
        with pair.use(side) as model:
            found = self_check(model, ids, engine=ENGINES[name])
        proof = f"{found.sites} sites written back bit for bit, whole forward passes agree within {found.replay_nats:.1e} nats"
        yield Finding(
            "ok", "engine", f"{side}: {name}, because {reason}; {proof} (worst {found.worst_site}), floor {found.floor_nats:.1e} nats"
        )
