"""Everything is found, read and checked before a model is loaded: files, tokenizers, prompts, and the plan."""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mechdiff.architectures.lookup import family_of, routers_of, shape_of
from mechdiff.architectures.sizes import QUANTIZED, Shape
from mechdiff.errors import ModelError, PromptError
from mechdiff.models.changes import open_changes
from mechdiff.models.functions import function_differences
from mechdiff.models.modules import not_in_files
from mechdiff.models.pair import SIDES, Pair, is_quantized, open_pair
from mechdiff.prompts.cuts import said_of_cuts, said_of_file
from mechdiff.prompts.matching import Vocabulary, agreed
from mechdiff.prompts.rendering import Rendered, render, tail
from mechdiff.prompts.sets import SPLITS, Prompt, clusters_of, read_prompts, split_prompts
from mechdiff.prompts.templates import PromptPolicy, chosen, said_of_chats
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of
from mechdiff.spacing import evenly_spaced
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.cells import TEXT_TOKENS, Item, Plan
from mechdiff.study.config import RunOptions, StudyConfig, config_hash, content_hashes
from mechdiff.study.experiment import Experiment, PromptSet, Reading, asked
from mechdiff.study.plan import plan
from mechdiff.study.planner import MAX_ROWS, PairFacts

ENGINE_VERSION = 9
"""Part of every cell's key: raised when the same cell would come out with other bits."""
QUICK = 6
"""Prompts of each split that a quick run keeps."""


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
    experiments: Mapping[str, Experiment]
    """Of every measure that a study may ask for."""
    vocabularies: dict[str, Vocabulary]
    """By side."""
    tokens: Tokens
    """The tokens of both models, over which all laws are written."""
    said: tuple[str, ...]
    """Warnings of the prompts and of what the tokenizers make of them."""
    identity: str
    """Hash of the models' files, dtype and engine: part of every cell's key."""
    config_hash: str
    broken: Broken = ()
    """Prompts that are left out."""

    def tokenizers(self) -> tuple[Any, Any]:
        """The base's and the tuned model's."""
        return self.pair.tokenizer("base"), self.pair.tokenizer("tuned")


def prepare(study: StudyConfig, options: RunOptions, experiments: Mapping[str, Experiment], *, broken: Broken = ()) -> Prepared:
    """Raises MechdiffError for whatever a user can put right: models, templates, prompts, options. `broken` prompts are left out, and said to be.

    `experiments`: of every measure that a study may ask for.
    """
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
    shapes: dict[str, Shape] = {side: shape_of(pair.config(side)) for side in SIDES}
    tokenizers: dict[str, Any] = {side: pair.tokenizer(side) for side in SIDES}
    study, chose = with_policy(study, tokenizers)
    study, also = with_dtype(study, pair)
    chose += also
    both = agreed(vocabulary_of(tokenizers["base"]), vocabulary_of(tokenizers["tuned"]))
    rows = {f"rows_{side}": shape.vocab for side, shape in shapes.items()}
    tokens = replace(shared_tokens(both.base, both.tuned, **rows, same_rows=study.pair.same_rows), flags=both.flags)
    reading = _read(study, options, experiments, tokenizers=tokenizers, shapes=shapes)
    rendered = reading.rendered
    _refuse_beyond(rendered, shapes, pair)
    left_out = reading.left_out
    for split, name, why in broken:
        del rendered[split][name]
        left_out.append({"what": f"prompt {name} ({split})", "why": why})
    rendered = {split: prompts for split, prompts in rendered.items() if prompts}
    hashes = {"base": pair.base.files(), "tuned": pair.tuned.files()}
    identity = cell_hash({"files": hashes, "dtype": study.dtype, "engine": options.engine, "version": ENGINE_VERSION})
    contents = {study.pair.base: cell_hash(hashes["base"]), study.pair.tuned: cell_hash(hashes["tuned"])}
    facts = _facts(study, experiments, pair, identity, one_vocabulary=tokens.equal)
    items = {split: _items(split, prompts, reading) for split, prompts in rendered.items()}
    return Prepared(
        study=study,
        options=options,
        pair=pair,
        rendered=rendered,
        hashes=hashes,
        plan=plan(study, experiments, facts, items, max_rows=options.max_rows or MAX_ROWS, left_out=left_out),
        experiments=experiments,
        vocabularies={"base": both.base, "tuned": both.tuned},
        tokens=tokens,
        said=(*chose, *_said(rendered, pair, tokens, reading.policy)),
        identity=identity,
        config_hash=cell_hash({"study": config_hash(study, content_hashes(study) | contents), "quick": options.quick}),
        broken=tuple(broken),
    )


def with_policy(study: StudyConfig, tokenizers: Mapping[str, Any]) -> tuple[StudyConfig, list[str]]:
    """The study with a policy, which `auto` leaves to the tokenizers, and what is to be said of the choice."""
    prompts = study.prompts
    if prompts.policy != "auto":
        return study, []
    policy, template, said = chosen(prompts.template, tokenizers["base"], tokenizers["tuned"])
    if policy == "raw" and (asked := prompts.system or prompts.date):
        raise PromptError(
            f"prompts: given {'system' if prompts.system else 'date'} {asked!r}, and neither model has a chat template that prints it. "
            "Take it out, or give a template (a Jinja file)."
        )
    settled = prompts.model_copy(update={"policy": policy, "template": template})
    return study.model_copy(update={"prompts": settled}), [said] if said else []


def with_dtype(study: StudyConfig, pair: Pair) -> tuple[StudyConfig, list[str]]:
    """The study with the dtype in which its pair runs, which `auto` leaves to the device and the files, and what is to be said of the choice."""
    if study.dtype == pair.dtype:
        return study, []
    where = pair.device or "all devices"
    said = f"dtype auto: both models run in {pair.dtype}, as they are stored, on {where}; effects near its rounding are less sure than in float32"
    return study.model_copy(update={"dtype": pair.dtype}), [said] if pair.dtype != "float32" else []


def policy_of(study: StudyConfig) -> PromptPolicy:
    """How the study's prompts become what the models read."""
    return PromptPolicy(**study.prompts.model_dump(include={"policy", "template", "position", "system", "date", "answer"}))


def _read(
    study: StudyConfig,
    options: RunOptions,
    experiments: Mapping[str, Experiment],
    *,
    tokenizers: Mapping[str, Any],
    shapes: Mapping[str, Shape],
) -> Reading:
    """All prompts as both models read them, and what the measures make of them."""
    policy = policy_of(study)
    lengths = {"max_base": shapes["base"].context, "max_tuned": shapes["tuned"].context}
    reading = Reading(study=study, rendered={}, tokenizers=tokenizers, policy=policy, lengths=lengths, shapes=shapes)
    any_length = {one.split for one in brought(study, experiments) if one.any_length}
    for split, prompts in read_splits(study, experiments, quick=options.quick).items():
        limits = dict.fromkeys(lengths, sys.maxsize) if split in any_length else lengths
        rendered = render(prompts, tokenizers["base"], tokenizers["tuned"], policy, **limits)
        reading.rendered[split] = {one.prompt.id: one for one in rendered}
    for experiment in experiments.values():
        experiment.read(reading)
    return reading


def _said(rendered: Mapping[str, Mapping[str, Rendered]], pair: Pair, tokens: Tokens, policy: PromptPolicy) -> tuple[str, ...]:
    """What a reader must know of prompts and tokenizers: chats in chats, cuts that are not the files', cuts that are not the other model's."""
    every = list(
        {one.prompt.whole: one for split in reversed(list(rendered)) for one in rendered[split].values()}.values()
    )  # each prompt once
    texts = {"base": [one.text_base for one in every], "tuned": [one.text_tuned for one in every]}
    sides = {pair.source(side).tokenizer_folder: side for side in reversed(SIDES)}  # an adapter may have its base's tokenizer
    files = [
        said for folder, side in sides.items() for said in said_of_file(pair.tokenizer(side), folder, texts[side], pair.source(side).ref)
    ]
    chats = said_of_chats([one.prompt for one in every], (pair.tokenizer("base"), pair.tokenizer("tuned")), policy)
    return (*chats, *files, *said_of_cuts(every, tokens), *_said_of_experts(pair))


def _said_of_experts(pair: Pair) -> list[str]:
    """A warning where a quantised dtype leaves experts as they are."""
    kept = {side: weights for side in SIDES if (weights := pair.weights(side)).experts and pair.dtype in QUANTIZED}
    return [
        f"{pair.source(side).ref}: in {pair.dtype} its experts ({weights.experts:,} of {weights.stored:,} parameters) stay bfloat16: they lie side "
        "by side in one tensor, and linear layers alone are held in fewer bits"
        for side, weights in kept.items()
    ]


def _facts(study: StudyConfig, experiments: Mapping[str, Experiment], pair: Pair, identity: str, *, one_vocabulary: bool) -> PairFacts:
    configs = {side: pair.config(side) for side in SIDES}
    kinds = [family_of(config, pair.base.ref).kinds(config) for config in configs.values()]
    by_weights = any(experiment.parts_changed for experiment, _ in asked(study, experiments))
    changes = open_changes(pair.base, pair.tuned) if by_weights else None
    routed = any(experiment.routers for experiment, _ in asked(study, experiments))
    return PairFacts(
        shapes={side: shape_of(config) for side, config in configs.items()},
        weights={side: pair.weights(side) for side in SIDES},
        kinds=[kind for kind in kinds[0] if kind in kinds[1]],
        identity=identity,
        adapter=pair.tuned.adapter is not None,
        merges=pair.merges,
        touched=changes.touched() if changes else None,
        tied=changes is not None and changes.tied,
        one_vocabulary=one_vocabulary,
        quantized=[side for side, config in configs.items() if is_quantized(config)],
        functions=function_differences(configs["base"], configs["tuned"]),
        routers={side: tuple(routers_of(config)) for side, config in configs.items()} if routed else {},
        in_turn=pair.one_at_a_time and not pair.tuned.adapter,  # an adapter's two models are one network
        unread=_unread(pair) if by_weights else "",
    )


def _unread(pair: Pair) -> str:
    """Why a model's tensors cannot be read again from its files, which one model in memory at a time needs; empty where they can be."""
    if not pair.one_at_a_time or pair.tuned.adapter:
        return ""
    for side in SIDES:
        if name := not_in_files(Path(pair.source(side).load), pair.weights(side).tensors):
            return (
                f"with one model in memory its tensors are read again from the files, and those of the {side} model hold no {name}: they name or lay "
                "out tensors otherwise than the network does. Give --memory both"
            )
    return ""


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


def _items(split: str, prompts: Mapping[str, Rendered], reading: Reading) -> list[Item]:
    clusters = clusters_of([one.prompt for one in prompts.values()])
    return [
        Item(
            id=name,
            sha256=one.sha256,
            tokens=min(len(one.ids_base), len(one.ids_tuned)),
            longest=max(len(one.ids_base), len(one.ids_tuned)),
            pairs=len(one.positions),
            tail=tail(one),
            room=(split, name) not in reading.full,
            text_tokens=statistics.fmean(reading.text_tokens.get((split, name)) or [TEXT_TOKENS]),
            cluster=cluster,
            **told(one.prompt),
        )
        for (name, one), cluster in zip(prompts.items(), clusters, strict=True)
    ]


def read_splits(study: StudyConfig, experiments: Mapping[str, Experiment], *, quick: bool = False) -> dict[str, list[Prompt]]:
    """The study's prompts by split. Raises PromptError where a text stands in two splits: what is chosen on one is reported on the other."""
    sources = study.prompts.sources()
    if "file" in sources:
        found = split_prompts(read_prompts(sources["file"]), study.seed)
    else:
        found = {split: read_prompts(sources[split]) for split in SPLITS if split in sources}
    most = {str(split): n for split, n in (study.prompts.at_most or {}).items()}
    found = {split: prompts[: most.get(split)] for split, prompts in found.items()}
    split_of: dict[str, str] = {}
    for split, prompts in found.items():
        for prompt in prompts:
            if split_of.setdefault(prompt.whole, split) != split:
                raise PromptError(
                    f"the text of prompt {prompt.id!r} stands in both {split_of[prompt.whole]} and {split}: what is chosen on one split would be "
                    "reported on the same prompt. Take it out of one of them."
                )
    for one in brought(study, experiments):  # last: a study's own splits come first
        prompts = [prompt for prompt in read_prompts(one.file) if not (one.unread and prompt.whole in split_of)]
        n = QUICK if quick and one.spread else one.n
        found[one.split] = list(evenly_spaced(n or len(prompts), prompts)) if one.spread else prompts[:n]
    return {split: prompts[:QUICK] if quick else prompts for split, prompts in found.items()}


def brought(study: StudyConfig, experiments: Mapping[str, Experiment]) -> list[PromptSet]:
    """The prompts that measures bring beside the study's own. A split that several bring is that of the first: the others read what is there."""
    found: dict[str, PromptSet] = {}
    for experiment, options in asked(study, experiments):
        for one in experiment.prompts(options):
            found.setdefault(one.split, one)
    return list(found.values())


def told(prompt: Prompt) -> dict[str, Any]:
    """What the plan sees of what comes with a prompt."""
    kind = prompt.meta.get("kind")
    hashed = cell_hash({"label": prompt.label, "options": prompt.options, "meta": prompt.meta, "text": prompt.text})
    return {
        "kind": None if kind is None else str(kind),
        "told": hashed,
        "options": len(prompt.options),
        "label": prompt.label is not None,
    }
