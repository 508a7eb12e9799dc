"""A finished run is opened again: its models, its prompts as they were rendered, its splits. It says what is no longer as it was recorded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.architectures.sizes import QUANTIZED
from mechdiff.audit import whole
from mechdiff.engine.counterfactuals import donors
from mechdiff.models.adapters import open_adapter
from mechdiff.models.pair import SIDES, Model, Side, is_quantized, load_net, wrap
from mechdiff.models.quantization import held_matrix
from mechdiff.models.switches import attach_adapter
from mechdiff.models.tensors import open_tensors
from mechdiff.prompts.sets import clusters_of
from mechdiff.store.disk import sha256
from mechdiff.store.tables import read_manifest
from mechdiff.study.config import RunOptions, make_study, of_this_version
from mechdiff.study.execution import positions
from mechdiff.study.experiment import Experiment
from mechdiff.study.prepare import Prepared, prepare

WINDOW = 8
"""Last positions of each prompt whose states are kept."""


class Rerun:
    """What recomputing rows of a run needs. `experiments`: of every measure that a study may ask for.

    Raises RunError where there is no run, ModelError where a model is gone.
    """

    def __init__(self, path: Path, experiments: Mapping[str, Experiment], device: str = "cpu") -> None:
        self.path, self.manifest = path, read_manifest(path)
        measures = {name: one.options for name, one in experiments.items()}
        study = make_study(of_this_version(self.manifest["config"], measures), measures)
        options = RunOptions(device=device, quick=self.manifest["quick"], threads=torch.get_num_threads())
        self.prepared: Prepared = prepare(study, options, experiments, broken=self.manifest["left_out"])
        checked = [one["replay_nats"] for one in self.manifest["selfcheck"].values()]
        self.floor = max([1e-12, *self.manifest["noise_floor"].values(), *checked])
        """Nats: the largest KL of the engine from whole passes: of unedited runs, and of the edited ones of the self-check. In few bits the first may
        agree to the bit where the second do not."""
        self._laws: dict[tuple[str, str, str], Tensor] = {}
        self._states: dict[tuple[str, str, str], dict[Site, Tensor]] = {}
        self.cached: dict[Any, Any] = {}
        """What several rows share, by what it is."""
        self.answered_by = "base" if study.answers.of == "base" else "tuned"
        """The model whose answers are read."""

    @contextmanager
    def answers_of(self, side: str) -> Iterator[None]:
        """Within, this model's answers are read: of a study that reads both models'."""
        before = self.answered_by, self.cached
        self.answered_by, self.cached = side, before[1].setdefault(("answers of", side), {})
        try:
            yield
        finally:
            self.answered_by, self.cached = before

    # ---- what was recorded, and what is there now ------------------------------------------------------------------------------------

    def changed_models(self) -> list[str]:
        """Files of the models that are not what the run read, in words."""
        said = []
        for side in SIDES:
            recorded, now = self.manifest["pair"][side]["files"], self.prepared.hashes[side]
            for name in sorted(recorded.keys() | now.keys()):
                if recorded.get(name) != now.get(name):
                    said.append(
                        f"{self.manifest['pair'][side]['ref']}: {name} is {_short(now.get(name))}, recorded {_short(recorded.get(name))}"
                    )
        return said

    def changed_prompts(self) -> list[str]:
        """Splits whose prompts are not rendered as they were."""
        recorded = self.manifest["prompts"]["rendered_sha256"]
        now = {split: [one.sha256 for one in prompts.values()] for split, prompts in self.prepared.rendered.items()}
        return [
            f"prompts of {split}: {len(now.get(split, []))} as they are rendered now, {len(recorded.get(split, []))} recorded; "
            f"{len(set(recorded.get(split, [])) - set(now.get(split, [])))} of the recorded ones are gone or read otherwise"
            for split in sorted(recorded.keys() | now.keys())
            if recorded.get(split) != now.get(split)
        ]

    def changed_files(self) -> list[str]:
        """Files of the run's folder that are gone or not what was written."""
        said = []
        for name, recorded in self.manifest["files"].items():
            file = self.path / name
            now = sha256(file.read_bytes()) if file.is_file() else None
            if now != recorded:
                said.append(f"{name} is {_short(now)}, recorded {_short(recorded)}")
        return said

    # ---- models and prompts ------------------------------------------------------------------------------------------------------------

    @contextmanager
    def model(self, side: str) -> Iterator[Model]:
        with self.prepared.pair.use(cast(Side, side)) as model:
            model.net.requires_grad_(False)
            yield model

    def ids(self, side: str, split: str, prompt: str) -> tuple[int, ...]:
        one = self.prepared.rendered[split][prompt]
        return one.ids_base if side == "base" else one.ids_tuned

    def law(self, side: str, split: str, prompt: str) -> Tensor:
        """Clean logits `[vocab]` in the tokens that both vocabularies are listed in."""
        return self._clean(side, split, prompt)[0]

    def state(self, side: str, split: str, prompt: str, site: Site, n_pos: int | None = 1) -> Tensor:
        """`[pos, d]` at the last `n_pos` aligned positions; None: all."""
        if n_pos is None or n_pos > WINDOW:
            with self.model(side) as model:
                return whole.states(model, self.ids(side, split, prompt), [site], n_pos)[site]
        kept = self._clean(side, split, prompt)[1][site]
        one = self.prepared.rendered[split][prompt]
        at = positions(one, "decision" if n_pos == 1 else f"last_{n_pos}", side)
        length = len(self.ids(side, split, prompt))
        return kept[[place - length for place in at]]

    def after_norm(self, side: str, split: str, site: Site) -> np.ndarray:
        """`[prompt, d]`: what the norm that reads a site, found as the first one that the site's state enters, makes of it in float64."""
        names = self.names(split)
        states = torch.stack([self.state(side, split, name, site)[-1] for name in names])
        with self.model(side) as model:
            if ("norms", side, split) not in self.cached:
                self.cached["norms", side, split] = whole.norms(model, self.ids(side, split, names[0]))
            entered = self.cached["norms", side, split]
            name = next(name for name, read in entered if read.shape[-1] == states.shape[-1] and torch.equal(read[-1], states[0]))
            norm = deepcopy(model.net.get_submodule(name)).double()
            return np.asarray(norm(states.to(model.device).double()).detach().cpu())

    def _clean(self, side: str, split: str, prompt: str) -> tuple[Tensor, dict[Site, Tensor]]:
        key = (side, split, prompt)
        if key not in self._laws:
            with self.model(side) as model:
                sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in model.kinds()]
                self._states[key] = whole.states(model, self.ids(*key), sites, WINDOW)
                self._laws[key] = self.prepared.tokens.place(whole.logits(model, self.ids(*key)), side)
        return self._laws[key], self._states[key]

    def run(self, side: str, split: str, prompt: str, puts: dict[Site, whole.Put]) -> Tensor:
        """Logits `[vocab]` of a run with these writes, in the tokens that both vocabularies are listed in."""
        with self.model(side) as model:
            return self.prepared.tokens.place(whole.logits(model, self.ids(side, split, prompt), puts), side)

    def names(self, split: str) -> list[str]:
        """The prompts of a split, in the order of the run's captured states."""
        cells = self.prepared.plan.cells
        found = [
            c for c in cells if c.stage == "capture" and c.side == "base" and (c.key["split"], c.key["position"]) == (split, "decision")
        ]
        return [name for cell in found for name in cell.key["ids"]]

    def donor(self, split: str, prompt: str) -> str:
        """The prompt whose state stands in for this one's in the arm resample."""
        names = self.names(split)
        clusters = clusters_of([self.prepared.rendered[split][name].prompt for name in names])
        return names[donors(clusters, self.prepared.study.seed)[names.index(prompt)]]

    def mean(self, side: str, site: Site, n_pos: int) -> Tensor:
        """`[pos, d]`: the mean over the fit prompts."""
        key = ("mean", side, site, n_pos)
        if key not in self.cached:
            self.cached[key] = torch.stack([self.state(side, "fit", name, site, n_pos).double() for name in self.names("fit")]).mean(0)
        return self.cached[key]

    @cached_property
    def nets(self) -> dict[str, Model]:
        """Both models by themselves, an adapter merged into its base: for weights."""
        pair = self.prepared.pair
        found: dict[str, Model] = {}
        for side in SIDES:
            source = pair.source(side)
            dtype = "float32" if pair.dtype in QUANTIZED else pair.dtype  # the files' weights, not as they are rounded
            net = load_net(source, dtype=dtype, device=pair.device)
            if source.adapter:
                tied = open_adapter(source.adapter, open_tensors(Path(source.load))).tied
                net = merged(attach_adapter(net, source.adapter, base=source.load), tied=tied)
            found[side] = wrap(net.requires_grad_(False), side=side, ref=source.ref)
        return found

    def output(self, side: str, layer: int) -> Tensor:
        """W_O by head, `[head, d_head, d]`: of a rounded model as its layer holds it, an adapter's change beside it."""
        pair = self.prepared.pair
        if pair.dtype not in QUANTIZED and not is_quantized(pair.config(cast(Side, side))):
            model = self.nets[side]
            stored = model.place(Site(layer, "attn_proj"))[0].get_parameter("weight")
            weight = stored.T if model.family.conv1d else stored
        else:
            with self.model(side) as model:
                module: Any = model.place(Site(layer, "attn_proj"))[0]
                weight = held_matrix(getattr(module, "base_layer", module)).float()
                if side == "tuned" and hasattr(module, "get_delta_weight"):
                    weight = weight + module.get_delta_weight("default").float()
        by_head = weight.reshape(len(weight), model.shape.n_heads, -1).permute(1, 2, 0)
        return torch.cat([by_head, by_head.new_zeros(len(by_head), model.shape.d_head - by_head.shape[1], by_head.shape[2])], 1)


def merged(adapted: Any, *, tied: bool) -> nn.Module:
    """The network with the adapter's change in its weights. `tied`: whether embedding and unembedding are one matrix with it; where they are not,
    each is its own before, for peft would add the change of one to both."""
    net = adapted.get_base_model()
    embed, head = net.get_input_embeddings(), net.get_output_embeddings()
    if not tied and embed.weight is head.weight:
        layer = head.get_base_layer() if hasattr(head, "get_base_layer") else head
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    whole: nn.Module = adapted.merge_and_unload()
    return whole


def _short(digest: str | None) -> str:
    return f"SHA-256 {digest[:12]}..." if digest else "not there"
