"""A model is edited while it scores texts and answers: activations patched, vectors added or taken out, weights grafted."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.generation import speak_edited
from mechdiff.engine.grafts import grafted
from mechdiff.engine.replay import Variant, Write
from mechdiff.engine.steered import steering
from mechdiff.measures.behaviour.compute import Asker, Scored, Value, by_prompt, options_of, published
from mechdiff.measures.grafting.compute import units_changed
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.steering import formula as steering_formula
from mechdiff.measures.steering.compute import strongest, subspace
from mechdiff.measures.transport.compute import maps_at, table
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

GRAFTED_LAYERS = 2
"""Of the closer layers: so many are grafted, the lowest first."""

SAID = ("refusal", "style_per_100_words", "exact_match")
"""Metrics of answers under edits."""

Columns = dict[str, Any]

NO_OP: Columns = {"control": "no_op"}
"""What rows of the unedited run are called."""


@dataclass(frozen=True, kw_only=True)
class Around:
    """An edit that is open around whole runs."""

    columns: Columns
    opened: AbstractContextManager[None]


def sway(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every edit of one direction; tensors: the answers under edits."""
    assert model
    bench = _Bench(run, cell, model)
    values = bench.scored()
    answered, said = bench.answered()
    values += answered
    for one in bench.around():
        with one.opened:
            values += bench.scored_around(one.columns)
            more, texts = bench.answered_around(one.columns)
        values, said = values + more, said + texts
    constant = {"measure": "behaviour", "direction": cell.key["direction"], "split": published(cell.key["split"])}
    return table(values, **constant) if values else empty(), {"said": as_bytes(said)}


class _Bench:
    """One direction on one split's chosen prompts."""

    def __init__(self, run: Execution, cell: Cell, model: Model) -> None:
        self.run, self.cell, self.model, self.direction = run, cell, model, cell.key["direction"]
        self.scoring, self.speaking = (Asker(run, cell, model, cell.key[which]) for which in ("ids", "spoken"))
        self.at = [list(cell.key["ids"]).index(name) for name in cell.key["spoken"]]
        """The places of the answered prompts among the scored ones."""
        self.closer = closer_layers(run, options_of(run))
        self.texts: list[Scored] = self.scoring.texts()
        self.variants, self.labels = self._variants()

    # ---- writes at the decision position

    def _variants(self) -> tuple[list[Variant], list[Columns]]:
        """The other model's state at every scored layer, mapped states at the closer ones; and what their rows are called."""
        runs, source = labels.sides(self.direction)
        variants: list[Variant] = []
        named: list[Columns] = []
        for kind in self.cell.key["kinds"]:
            for layer in sorted({*self.cell.key["layers"], *self.closer}) if runs != source else ():
                variants.append({Site(layer, kind): Write(value=self._states(source, kind, layer)[:, None])})
                named.append({"layer": layer, "site": kind, "arm": "identity"})
            for layer in self.closer:
                for arm, rank, written in self._mapped(kind, layer):
                    variants.append({Site(layer, kind): Write(value=written[:, None].float())})
                    named.append({"layer": layer, "site": kind, "arm": arm, "rank": rank})
        return variants, named

    def _states(self, side: str, kind: str, layer: int) -> Tensor:
        """`[prompt, d]`"""
        key = self.cell.key
        return self.run.states(side, key["split"], "decision", key["ids"]).kinds[kind][layer, :, 0]

    def _mapped(self, kind: str, layer: int) -> Iterator[tuple[str, int, Tensor]]:
        """Arm, rank and state of every map of this site that says something in the direction."""
        fits = [one for one in self.run.cells if one.stage == "fits" and one.key["kind"] == kind and layer in one.key["layers"]]
        if not fits or self.direction == labels.TUNED_INTO_BASE:  # a perfect map would write the base's own state: see transport
            return
        way, source = ("back", "tuned") if self.direction == "tuned<-tuned" else ("there", "base")
        maps = getattr(maps_at(self.run, fits[0], layer), way)
        for arm in self.cell.key["maps"]:
            yield arm, maps[arm].rank_, maps[arm].transform(self._states(source, kind, layer))

    def scored(self) -> list[Value]:
        """Soft refusals and choices of the clean run and under every write."""
        found = self.scoring.likelihoods(self.texts, self.variants).logps
        return [value for run, label in enumerate([NO_OP, *self.labels]) for value in self._values(found[:, run], label)]

    def _values(self, logps: Tensor, label: Columns) -> list[Value]:
        return [
            {**label, "prompt": name, "metric": metric, "value": value}
            for name, one, sums in zip(self.scoring.names, self.texts, by_prompt(self.texts, logps), strict=True)
            for metric, value in one.values(sums).items()
        ]

    def answered(self) -> tuple[list[Value], list[Columns]]:
        """The clean answers and those under the writes at the closer layers; and the texts of the latter."""
        near = [i for i, label in enumerate(self.labels) if label["layer"] in self.closer]
        variants = [{site: write.of(self.at) for site, write in self.variants[i].items()} for i in near]
        asker = self.speaking
        runs = speak_edited(self.model, asker.engine, asker.ids, variants, asker.speaking())
        values: list[Value] = []
        texts: list[Columns] = []
        for place, label in enumerate([NO_OP, *(self.labels[i] for i in near)]):
            more, said = self._answers([asker.cut(answers[place]) for answers in runs], label)
            values, texts = values + more, texts + (said if place else [])
        return values, texts

    def _answers(self, answers: Sequence[Tensor], label: Columns) -> tuple[list[Value], list[Columns]]:
        values: list[Value] = []
        texts = []
        for i, (name, answer) in enumerate(zip(self.speaking.names, answers, strict=True)):
            found = self.speaking.said(i, answer)
            values += [{**label, "prompt": name, "metric": m, "value": found[m, None]} for m in SAID if (m, None) in found]
            texts.append({"prompt": name, "direction": self.direction, **label, "text": self.speaking.text(answer)})
        return values, texts

    # ---- edits around whole runs

    def around(self) -> Iterator[Around]:
        """What is added or taken out at every position where steering ran, and grafts."""
        if self.direction in labels.WITHIN:
            yield from self._steered()
        if self.direction == labels.TUNED_INTO_BASE and self.cell.key["grafts"]:
            yield from self._grafts()

    def _steered(self) -> Iterator[Around]:
        """The mean difference added to the base; the first direction of the change taken out of the tuned model."""
        for kind in sorted({cell.key["kind"] for cell in self.run.cells if cell.stage == "steering"}):
            for layer in strongest(self.run, kind):
                found, columns = subspace(self.run, kind, layer), {"layer": layer, "site": kind, "unit": labels.ALL_POSITIONS, "rank": 1}
                if not found.rank:
                    continue
                add = self.direction == "base<-base"
                push = steering_formula.add(found.mean) if add else steering_formula.ablate(found.leading(1), found.origin)
                yield Around(columns={**columns, "arm": "add" if add else "ablate"}, opened=steering(self.model, {Site(layer, kind): push}))

    def _grafts(self) -> Iterator[Around]:
        """The tuned attention or MLP of one of the closer layers in the base, where it has changed."""
        changes = units_changed(self.run, self.model)
        for layer in self.closer[:GRAFTED_LAYERS]:
            for unit in changes.units:
                if unit.layer == layer and unit.kind in ("attn", "mlp"):
                    columns = {"layer": layer, "site": unit.kind, "arm": "alone", "unit": labels.ALL_POSITIONS}
                    yield Around(columns=columns, opened=grafted(self.model, changes, [unit]))

    def scored_around(self, label: Columns) -> list[Value]:
        return self._values(self.scoring.likelihoods(self.texts).logps[:, 0], label)

    def answered_around(self, label: Columns) -> tuple[list[Value], list[Columns]]:
        return self._answers(self.speaking.answers(), label)
