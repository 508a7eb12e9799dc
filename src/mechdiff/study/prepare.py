"""Everything that is found, read and checked before a model is loaded: files, tokenizers, prompts, and the plan."""

import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mechdiff.engine.changes import open_changes
from mechdiff.engine.families import Shape, family_of, shape_of
from mechdiff.engine.functions import function_differences
from mechdiff.engine.matching import Vocabulary, agreed
from mechdiff.engine.models import SIDES, Pair, is_quantized, open_pair
from mechdiff.engine.prompts import SPLITS, Prompt, read_prompts, split_prompts
from mechdiff.engine.rendering import PromptPolicy, Rendered, render, tail
from mechdiff.engine.sites import KINDS
from mechdiff.engine.vocabularies import Tokens, shared_tokens, vocabulary_of
from mechdiff.errors import ModelError, PromptError
from mechdiff.measures.behaviour import language_of
from mechdiff.measures.phrases import read_phrases
from mechdiff.spacing import evenly_spaced
from mechdiff.study.artifacts import cell_hash
from mechdiff.study.cells import TEXT_TOKENS, Item, Plan
from mechdiff.study.config import RunOptions, StudyConfig, config_hash, content_hashes
from mechdiff.study.options import BehaviourOptions, DivergenceOptions, GraftingOptions, SteeringOptions, WeightsOptions
from mechdiff.study.plan import plan
from mechdiff.study.planner import MAX_ROWS

ENGINE_VERSION = 8
"""Part of every cell's key: raised when the same cell would come out with other bits."""

NEUTRAL = Path(__file__).parent.parent / "data" / "neutral.jsonl"
"""Everyday questions and instructions, for side effects."""

PROBES = Path(__file__).parent.parent / "data" / "behaviour" / "probes.jsonl"
"""Requests, questions and sums on which behaviour is looked at beside the study's own prompts."""

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
    left_out = _add_native(study, rendered, tokenizers, policy, lengths)
    _refuse_beyond(rendered, shapes, pair)
    left_out += _without_lists(study, rendered)
    behind = _behind(study, rendered, tokenizers)
    full = _without_room(behind, rendered, shapes)
    if full:
        left_out.append(_said_of_full(full))
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


def _add_native(
    study: StudyConfig,
    rendered: dict[str, dict[str, Rendered]],
    tokenizers: Mapping[str, Any],
    policy: PromptPolicy,
    lengths: Mapping[str, int],
) -> list[dict[str, str]]:
    """Adds the report prompts by each model's own template, as the split `native`, where that is another text; what is left out, and why."""
    divergence = study.asked(DivergenceOptions)
    if not (divergence and divergence.native and policy.policy == "same_text" and "report" in rendered):
        return []
    bare = [side for side, tokenizer in tokenizers.items() if not tokenizer.chat_template]
    if bare:
        return [{"what": "divergence: native templates", "why": f"the tokenizer of {' and '.join(bare)} has no chat template of its own"}]
    prompts = [one.prompt for one in rendered["report"].values()]
    own = render(prompts, tokenizers["base"], tokenizers["tuned"], replace(policy, policy="native", position="decision"), **lengths)
    if any(one.sha256 != rendered["report"][one.prompt.id].sha256 for one in own):
        rendered["native"] = {one.prompt.id: one for one in own}
    return []


Behind = Mapping[str, Mapping[tuple[str, str], Sequence[int]]]
"""Side -> (split, prompt) -> tokens of each text that behaviour may score behind it."""


def _behind(study: StudyConfig, rendered: Mapping[str, Mapping[str, Rendered]], tokenizers: Mapping[str, Any]) -> Behind:
    behaviour = study.asked(BehaviourOptions)
    if not behaviour:
        return {}
    phrases, n = read_phrases(behaviour.patterns), behaviour.openings
    found: dict[str, dict[tuple[str, str], list[int]]] = {}
    for side, tokenizer in tokenizers.items():
        length = cache(lambda text, cut=tokenizer: len(cut(f" {text}", verbose=False)["input_ids"]))
        found[side] = {}
        for split in ("report", "probes"):
            for name, one in rendered.get(split, {}).items():
                lists = phrases.get(language_of(one.prompt.text, one.prompt.meta, phrases) or "")
                openings = (*lists.refusal_openings[:n], *lists.neutral_openings[:n]) if lists else ()
                found[side][split, name] = [length(text) for text in (*openings, *one.prompt.options)]
    return found


def _without_room(behind: Behind, rendered: Mapping[str, Mapping[str, Rendered]], shapes: Mapping[str, Shape]) -> set[tuple[str, str]]:
    """(split, prompt) of those behind which not every text has room in both models' contexts."""
    return {
        (split, name)
        for side, prompts in behind.items()
        for (split, name), lengths in prompts.items()
        if len(getattr(rendered[split][name], f"ids_{side}")) + max([1, *lengths]) > shapes[side].context
    }


def _without_lists(study: StudyConfig, rendered: Mapping[str, Mapping[str, Rendered]]) -> list[dict[str, str]]:
    """Prompts whose language has no lists, and lists whose language no prompt has."""
    behaviour = study.asked(BehaviourOptions)
    if not behaviour:
        return []
    own = behaviour.patterns
    phrases = read_phrases(own)
    prompts = [one.prompt for split in ("report", "probes") for one in rendered.get(split, {}).values()]
    found = [(prompt.id, language_of(prompt.text, prompt.meta, phrases)) for prompt in prompts]
    bare = [name for name, language in found if language is None]
    said = []
    if bare:
        why = "no lists are known for their language; say meta.language, or give lists as behaviour.patterns"
        said.append({"what": f"style and soft refusal of {len(bare)} prompts", "why": f"{why}: {_first_few(bare)}"})
    files = sorted(Path(own).glob("*.yaml")) if own and Path(own).is_dir() else [Path(own)] if own else []
    idle = [path.name for path in files if path.stem not in {language for _, language in found}]
    if idle:
        said.append(
            {
                "what": f"the lists in {', '.join(idle)}",
                "why": "no prompt is in that language, which is what the file is called: en.yaml",
            }
        )
    return said


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _said_of_full(full: set[tuple[str, str]]) -> dict[str, str]:
    names = sorted(name for _, name in full)
    why = "with the openings and options that are scored behind them they are longer than a model's context"
    return {"what": f"behaviour of {len(names)} prompts", "why": f"{why}: {_first_few(names)}. Shorten them to have them answered"}


def read_splits(study: StudyConfig, *, quick: bool = False) -> dict[str, list[Prompt]]:
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
            if split_of.setdefault(prompt.text, split) != split:
                raise PromptError(
                    f"the text of prompt {prompt.id!r} stands in both {split_of[prompt.text]} and {split}: what is chosen on one split would be "
                    "reported on the same prompt. Take it out of one of them."
                )
    steering = study.asked(SteeringOptions)
    if steering and steering.side_prompts:  # last: a study's own splits come first
        neutral = [prompt for prompt in read_prompts(steering.neutral or NEUTRAL) if prompt.text not in split_of]
        found["neutral"] = neutral[: steering.side_prompts]
    behaviour = study.asked(BehaviourOptions)
    if behaviour and behaviour.probes:
        probes, n = read_prompts(PROBES if behaviour.probes is True else behaviour.probes), QUICK if quick else behaviour.n_probes
        found["probes"] = list(evenly_spaced(n or len(probes), probes))  # of every kind: kinds stand together in a file
    return {split: prompts[:QUICK] if quick else prompts for split, prompts in found.items()}


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
