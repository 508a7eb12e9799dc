"""Does a pair fit? Every step that a run takes before its first number is tried here by the functions that a run calls.

Each finding is said on its own, so that one fault does not hide the next. A step that a run would end in is one finding, in the sentence that the
run would end with; the steps that do not need it go on. So what passes here ends a run in no error that could have been seen without computing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.architectures.sites import KINDS
from mechdiff.digits import fixed
from mechdiff.engine.choice import engine_for
from mechdiff.engine.replay import ENGINES
from mechdiff.engine.selfcheck import self_check
from mechdiff.errors import MechdiffError, PromptError
from mechdiff.models.lineage import lineage
from mechdiff.models.pair import SIDES, Pair, Side, open_pair
from mechdiff.models.sources import resolve
from mechdiff.prompts.rendering import Rendered
from mechdiff.prompts.templates import said_of_template, several_templates
from mechdiff.prompts.vocabularies import Tokens, shared_tokens, vocabulary_of
from mechdiff.study.config import RunOptions, StudyConfig
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Experiment
from mechdiff.study.prepare import Prepared, policy_of, prepare, with_dtype, with_policy

_TEXTS = ("The quick brown fox jumps over the lazy dog.", "How many legs do two spiders and a dog have together? Count them one by one.")
"""What the engines read where the prompts cannot be rendered."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "ok", "note" (a study runs, with something to know), or "fail" (it does not)."""

    verdict: Literal["ok", "note", "fail"]
    what: str
    said: str


def check(
    study: StudyConfig, options: RunOptions, experiments: Mapping[str, Experiment], alternatives: Sequence[str] = ()
) -> Iterator[Finding]:
    """Findings on the models, their tokenizers and templates, the prompts, what will be left out, the lineage (also to other candidate bases), and
    both engines. `experiments`: of every measure that a study may ask for."""
    given, failed = study.pair, set[str]()
    try:
        pair = open_pair(
            given.base, given.tuned, dtype=study.dtype, device=options.device, memory=options.memory, trusted=options.trust_remote_code
        )
        study, said = with_dtype(study, pair)
        yield from (Finding("note", "dtype", one) for one in said)
        tried = _Check(study, options, experiments, pair)
        steps = tried.steps(alternatives)
    except MechdiffError as error:
        yield Finding("fail", "models", str(error))
        return
    for what, findings in steps:
        try:
            yield from findings
        except MechdiffError as error:
            if str(error) not in failed:
                yield Finding("fail", what, str(error))
            failed.add(str(error))


class _Check:
    """What one step finds and the next may use; None where the step that makes it failed."""

    def __init__(self, study: StudyConfig, options: RunOptions, experiments: Mapping[str, Experiment], pair: Pair) -> None:
        self.study, self.options, self.experiments, self.pair = study, options, experiments, pair
        self.shapes = {side: shape_of(pair.config(side)) for side in SIDES}
        self.tokens: Tokens | None = None
        self.prepared: Prepared | None = None
        self.told = set[str]()

    def steps(self, alternatives: Sequence[str]) -> Iterator[tuple[str, Iterator[Finding]]]:
        yield from ((side, self._model(side)) for side in SIDES)
        yield "sizes", self._sizes()
        yield "tokenizers", self._tokenizers()
        yield "templates", self._templates()
        yield "prompts", self._prompts()
        yield "lineage", self._lineage(alternatives)
        yield from (("engine", self._engine(side)) for side in SIDES)
        yield from (("measures", self._proof(experiment)) for experiment in self.experiments.values())

    def _model(self, side: Side) -> Iterator[Finding]:
        config, shape = self.pair.config(side), self.shapes[side]
        family = family_of(config, self.pair.source(side).ref)
        kinds = family.kinds(config)
        adapter = ", an adapter on the base" if side == "tuned" and self.pair.tuned.adapter else ""
        heads = f"{shape.n_heads} heads, {shape.n_kv_heads} key-value heads"
        streams = f" in each of {shape.streams} residual streams" if shape.streams > 1 else ""
        sizes = f"{shape.n_layers} blocks, d_model {shape.d_model}{streams}, {heads}, vocabulary {shape.vocab}"
        counted = self.pair.weights(side).said(self.study.dtype)
        absent = [kind for kind in KINDS if kind not in kinds]
        without = f"; it has no {' and no '.join(absent)}" if absent else ""
        row = " (row proposed from the network, proved below)" if family.by_layer else ""
        yield Finding("ok", side, f"{config.model_type}{row}{adapter}: {sizes}; {counted}; sites {', '.join(kinds)}{without}")

    def _sizes(self) -> Iterator[Finding]:
        base, tuned = self.shapes.values()
        same = all(getattr(base, size) == getattr(tuned, size) for size in ("n_layers", "d_model", "streams", "n_heads", "d_head"))
        differ = Finding(
            "note", "sizes", "they differ in depth or width: no activation of one fits into the other, so none can be patched in"
        )
        yield Finding("ok", "sizes", "equal") if same else differ

    def _tokenizers(self) -> Iterator[Finding]:
        rows = {f"rows_{side}": shape.vocab for side, shape in self.shapes.items()}
        base, tuned = (vocabulary_of(self.pair.tokenizer(side)) for side in SIDES)
        tokens = self.tokens = shared_tokens(base, tuned, **rows, same_rows=self.study.pair.same_rows)
        said = (
            "next-token distributions are compared on the shared tokens beside the mass outside, and by next bytes; "
            if tokens.n_shared < len(tokens)
            else ""
        )
        fits = (
            ""
            if tokens.equal
            else f"; {said}no weights are grafted, and no windows of positions patched where the two cut prompts differently"
        )
        yield Finding("ok" if tokens.equal else "note", "tokenizers", tokens.said() + fits)
        if renamed := tokens.said_of_renamed():
            yield Finding("note", "tokenizers", renamed)

    def _templates(self) -> Iterator[Finding]:
        tokenizers: dict[str, Any] = {side: self.pair.tokenizer(side) for side in SIDES}
        base, tuned = (tokenizer.chat_template for tokenizer in tokenizers.values())
        if not base and not tuned:
            yield Finding("note", "templates", "neither model has a chat template: by default prompts are read as bare text")
        elif not tuned:
            yield Finding("note", "templates", "only the base has one: by default both models read prompts in it")
        elif not base:
            yield Finding(
                "ok", "templates", "only the tuned model has one, and same_text (the default) renders both models' prompts with it"
            )
        else:
            said = "equal" if base == tuned else "they differ; same_text (the default) renders both models' prompts with the tuned one's"
            yield Finding("ok" if base == tuned else "note", "templates", said)
        for side, tokenizer in tokenizers.items():
            yield from (Finding("note", "templates", said) for said in several_templates(side, tokenizer))
        with suppress(PromptError):  # one that cannot be rendered ends the next step, in the words that a run ends with
            policy = policy_of(with_policy(self.study, tokenizers)[0])
            for said in said_of_template((tokenizers["base"], tokenizers["tuned"]), policy):
                yield Finding("note", "templates", said)

    def _prompts(self) -> Iterator[Finding]:
        """As a run prepares itself: its prompts as both models read them, and what of the study is left out."""
        self.prepared = prepare(self.study, self.options, self.experiments)
        every = [one for prompts in self.prepared.rendered.values() for one in prompts.values()]
        lengths = [len(ids) for one in every for ids in (one.ids_base, one.ids_tuned)]
        shown = self._shortest()[0]
        yield Finding(
            "ok",
            "prompts",
            f"{len(every)} rendered, of {min(lengths)} to {max(lengths)} tokens; the tuned model reads {shown.text_tuned!r}",
        )
        yield from (Finding("note", "prompts", said) for said in self.prepared.said)
        yield from (Finding("note", "left out", f"{one['what']}: {one['why']}") for one in self.prepared.plan.skipped)

    def _shortest(self) -> list[Rendered]:
        """The shortest prompts of the study's own first split: enough for the engines to prove themselves on."""
        assert self.prepared
        prompts = next(iter(self.prepared.rendered.values())).values()
        return sorted(prompts, key=lambda one: (len(one.ids_tuned), one.prompt.id))[:2]

    def _lineage(self, alternatives: Sequence[str]) -> Iterator[Finding]:
        pair = self.pair
        configs: dict[str, Any] = {side: pair.config(side) for side in SIDES}
        others = []
        for ref in alternatives:
            try:
                others.append(resolve(ref))
            except MechdiffError as error:  # of which a run warns, and goes on
                yield Finding("note", "lineage", str(error))
        found = lineage(pair.base, pair.tuned, others, self.tokens, configs)
        far = found["relative_distance"]
        distance = "unknown from the files" if far is None else f"{fixed(far)} of the base's size"
        changed = f"{found['changed_tensors']} tensors changed, {found['equal_tensors']} equal to the bit"
        oddities = (("only_base", "only in base"), ("only_tuned", "only in tuned"), ("reshaped_tensors", "of other shape"),
                    ("uncompared_tensors", "not compared"))  # fmt: skip
        unlike = [f"{len(found[name])} {words}" for name, words in oddities if found[name]]
        yield Finding("ok", "lineage", "; ".join([f"weights moved by {distance}", changed, *unlike]))
        for said in found["functions"]:
            yield Finding("note", "config", f"{said}: no weight, and it changes what is computed")
        if not found["functions"]:
            yield Finding("ok", "config", "both compute the same beside their weights")
        for other in found["alternatives"]:
            far = "unknown" if other["relative_distance"] is None else f"{fixed(other['relative_distance'])} of its size"
            yield Finding("ok", "lineage", f"distance from {other['ref']}: {far}")
        for said in (*found["not_compared"], *found["warnings"]):
            yield Finding("note", "lineage", said)

    def _engine(self, side: Side) -> Iterator[Finding]:
        pair = self.prepared.pair if self.prepared else self.pair
        if self.prepared:
            ids = [list(one.ids_base if side == "base" else one.ids_tuned) for one in self._shortest()]
        else:
            tokenizer, rows = pair.tokenizer(side), self.shapes[side].vocab
            ids = [[token for token in tokenizer(text)["input_ids"] if token < rows] for text in _TEXTS]
        name, reason = engine_for(pair.config(side))
        with pair.use(side) as model:
            found = self_check(model, ids, engine=ENGINES[name])
        yield from (Finding("note", side, said) for said in pair.told if said not in self.told)
        self.told.update(pair.told)
        proof = f"{found.sites} sites written back bit for bit, whole forward passes agree within {found.replay_nats:.1e} nats"
        yield Finding(
            "ok", "engine", f"{side}: {name}, because {reason}; {proof} (worst {found.worst_site}), floor {found.floor_nats:.1e} nats"
        )

    def _proof(self, experiment: Experiment) -> Iterator[Finding]:
        """What would end a measure and shows on the loaded models alone."""
        if self.prepared and {stage.name for stage in experiment.stages} & {cell.stage for cell in self.prepared.plan.cells}:
            experiment.proof(Execution(self.prepared, None))
        yield from ()
