"""Everything is found, read and checked before a model is loaded: files, tokenizers, prompts, and the plan."""

import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mechdiff.errors import ModelError
from mechdiff.measures.behaviour.plan import BehaviourOptions
from mechdiff.measures.behaviour.probes import said_of_full, texts_behind, without_lists, without_room
from mechdiff.measures.divergence.plan import add_native
from mechdiff.measures.grafting.plan import GraftingOptions
from mechdiff.measures.weights.plan import WeightsOptions
from mechdiff.models.changes import open_changes
from mechdiff.models.families import Shape, family_of, shape_of
from mechdiff.models.functions import function_differences
from mechdiff.models.pair import SIDES, Pair, is_quantized, open_pair
from mechdiff.models.sites import KINDS
from mechdiff.prompts.matching import Vocabulary, agreed
from mechdiff.prompts.rendering import PromptPolicy, Rendered, render, tail
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.cells import TEXT_TOKENS, Item, Plan
from mechdiff.study.config import RunOptions, StudyConfig, config_hash, content_hashes
from mechdiff.study.plan import plan
from mechdiff.study.planner import MAX_ROWS
from mechdiff.study.splits import read_splits, told

ENGINE_VERSION = 8
"""Part of every cell's key: raised when the same cell would come out with other bits."""


Broken = Sequence[tuple[str, str, str]]
"""Prompts that no number can be made of: split, id, why."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pair whose configs fit, its prompts as both models see them, and the plan. Only tokenizers have been loaded."""

    study: StudyConfig
    options: RunOptions
    pair: Pair
    rendered: dict[str, dict[str, Rendered]]
    """Split -> prompt id -> the prompt."""
    hashes: dict[str, dict[str, str]]
    """Side -> file -> sha256."""
    plan: Plan
    vocabularies: dict[str, Vocabulary]
    """By side."""
    tokens: Tokens
    """The tokens of both models, over which all laws are written."""
    identity: str
    """Hash of the models' files, dtype and engine: part of every cell's key."""
    config_hash: str
    broken: Broken = ()
    """Prompts that are left out."""

    def tokenizers(self) -> tuple[Any, Any]:
        """The base's and the tuned model's."""
        return self.pair.tokenizer("base"), self.pair.tokenizer("tuned")


def prepare(study: StudyConfig, options: RunOptions, *, broken: Broken = ()) -> Prepared:
    """Raises MechdiffError for whatever a user can put right: models, templates, prompts, options. `broken` prompts are left out, and said to be."""
    if options.threads:
        torch.set_num_threads(options.threads)
    pair = open_pair(
        study.pair.base,
        study.pair.tuned,
        dtype=study.dtype,
        device=options.device,
        memory=options.memory,
        trusted=options.trust_remote_code,
    )
    configs = {"base": pair.config("base"), "tuned": pair.config("tuned")}
    shapes = {side: shape_of(config) for side, config in configs.items()}
    tokenizers = {"base": pair.tokenizer("base"), "tuned": pair.tokenizer("tuned")}
    both = agreed(vocabulary_of(tokenizers["base"]), vocabulary_of(tokenizers["tuned"]))
    vocabularies = {"base": both.base, "tuned": both.tuned}
    rows = {f"rows_{side}": shape.vocab for side, shape in shapes.items()}
    tokens = replace(shared_tokens(both.base, both.tuned, **rows, same_rows=study.pair.same_rows), flags=both.flags)
    policy = PromptPolicy(**study.prompts.model_dump(include={"policy", "template", "position", "system", "date", "answer"}))
    lengths = {"max_base": shapes["base"].context, "max_tuned": shapes["tuned"].context}
    rendered, behaviour = {}, study.asked(BehaviourOptions)
    for split, prompts in read_splits(study, quick=options.quick).items():
        shipped = split == "probes" and behaviour and behaviour.probes is True
        limits = dict.fromkeys(lengths, sys.maxsize) if shipped else lengths
        rendered[split] = {one.prompt.id: one for one in render(prompts, tokenizers["base"], tokenizers["tuned"], policy, **limits)}
    left_out = add_native(study, rendered, tokenizers, policy, lengths)
    _refuse_beyond(rendered, shapes, pair)
    left_out += without_lists(study, rendered)
    behind = texts_behind(study, rendered, tokenizers)
    full = without_room(behind, rendered, shapes)
    if full:
        left_out.append(said_of_full(full))
        rendered["probes"] = {name: one for name, one in rendered.get("probes", {}).items() if ("probes", name) not in full}
    for split, name, why in broken:
        del rendered[split][name]
        left_out.append({"what": f"prompt {name} ({split})", "why": why})
    rendered = {split: prompts for split, prompts in rendered.items() if prompts}
    hashes = {"base": pair.base.files(), "tuned": pair.tuned.files()}
    identity = cell_hash({"files": hashes, "dtype": study.dtype, "engine": options.engine, "version": ENGINE_VERSION})
    places = [family_of(config, pair.base.ref).places(config) for config in configs.values()]
    contents = {study.pair.base: cell_hash(hashes["base"]), study.pair.tuned: cell_hash(hashes["tuned"])}
    by_weights = study.asked(WeightsOptions) or study.asked(GraftingOptions)
    return Prepared(
        study=study,
        options=options,
        pair=pair,
        rendered=rendered,
        hashes=hashes,
        plan=plan(
            study,
            shapes,
            [kind for kind in KINDS if all(kind in place for place in places)],
            {split: _items(split, prompts, full, behind.get("base", {})) for split, prompts in rendered.items()},
            identity=identity,
            max_rows=options.max_rows or MAX_ROWS,
            adapter=pair.tuned.adapter is not None,
            touched=open_changes(pair.base, pair.tuned).touched() if by_weights else None,
            one_vocabulary=tokens.equal,
            quantized=[side for side, config in configs.items() if is_quantized(config)],
            functions=function_differences(configs["base"], configs["tuned"]),
            left_out=left_out,
        ),
        vocabularies=vocabularies,
        tokens=tokens,
        identity=identity,
        config_hash=cell_hash({"study": config_hash(study, content_hashes(study) | contents), "quick": options.quick}),
        broken=tuple(broken),
    )


def _refuse_beyond(rendered: Mapping[str, Mapping[str, Rendered]], shapes: Mapping[str, Shape], pair: Pair) -> None:
    """Raises ModelError where a prompt holds a token for which a model's embedding has no row."""
    for split, prompts in rendered.items():
        for name, one in prompts.items():
            for side in SIDES:
                token, rows = max(getattr(one, f"ids_{side}")), shapes[side].vocab
                if token >= rows:
                    raise ModelError(
                        f"{pair.source(side).ref}: its tokenizer gives token {token} ({pair.tokenizer(side).convert_ids_to_tokens(token)}) in prompt "
                        f"{name} ({split}), and its embedding has {rows} rows. The tokenizer has tokens for which the model was never enlarged: "
                        "enlarge it (resize_token_embeddings; an adapter: merge it into the enlarged base) and save that folder, or, where the "
                        "chat template prints them, give another one (prompts: {template: base}, or a file)."
                    )


def _items(
    split: str, prompts: Mapping[str, Rendered], full: Collection[tuple[str, str]], behind: Mapping[tuple[str, str], Sequence[int]]
) -> list[Item]:
    return [
        Item(
            id=name,
            sha256=one.sha256,
            tokens=min(len(one.ids_base), len(one.ids_tuned)),
            pairs=len(one.positions),
            tail=tail(one),
            room=(split, name) not in full,
            text_tokens=statistics.fmean(behind.get((split, name)) or [TEXT_TOKENS]),
            **told(one.prompt),
        )
        for name, one in prompts.items()
    ]
