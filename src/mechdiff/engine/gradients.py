"""Gradients of what a model predicts are taken with respect to its activations: every site, many runs, one forward and one backward pass.

A *push* is a run in which states are added at some sites (zeros: the clean run). The runs of `replay.py` stand side by side and do not see each
other, so one backward pass of the sum of their objectives gives each run its own gradient, at all of its sites.

A state h at a site decides a law p(y | h). The Fisher information of that law,

    F = E_{y ~ p} g g',   g = d log p(y) / dh,

is what a small step dh costs in nats: KL(p || p moved) = dh' F dh / 2 + ... So a step counts by what the network makes of it, not by its length.
F is sampled: y is drawn from the model's own law.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import Clean, differentiated
from mechdiff.engine.continued import RUNS
from mechdiff.engine.replay import Engine, Write
from mechdiff.models.pair import Model

Push = Mapping[Site, Float[Tensor, "prompt *place d"]]


def gradients(
    model: Model,
    engine: Engine,
    cleans: Sequence[Clean],
    pushes: Sequence[Push],
    objective: Callable[[Float[Tensor, "row push vocab"]], Float[Tensor, "row push"]],
    *,
    answers: Sequence[Sequence[int]] | None = None,
) -> list[dict[Site, Float[Tensor, "prompt *place d"]]]:
    """d objective / d state at the last position of each push's sites, where its states have been added; float32, on the CPU.

    With `answers`, what follows each prompt: at every position of these, where a push has a state too; the objective then gets a row a position, one
    prompt's after another's. A run's objective must depend on its own logits alone.
    """
    with _differentiable(model):
        leaves = [{site: _leaf(model, state) for site, state in push.items()} for push in pushes]
        values = [{site: leaf if answers else leaf[:, None] for site, leaf in one.items()} for one in leaves]
        variants = [{site: Write(value=value, add=True) for site, value in one.items()} for one in values]
        logits = RUNS[engine](model, cleans, answers, variants) if answers else engine(model, cleans, variants)
        total = objective(logits[:, 1:]).sum()
        found = iter(torch.autograd.grad(total, [leaf for one in leaves for leaf in one.values()]))
    return [{site: next(found).float().cpu() for site in one} for one in leaves]


def _leaf(model: Model, state: Tensor) -> Tensor:
    """A copy of a state for gradients to be taken of: captured states themselves are refused by autograd."""
    return state.detach().to(model.device, model.dtype, copy=True).requires_grad_()


@contextmanager
def _differentiable(model: Model) -> Iterator[None]:
    """While open, passes keep what gradients of states need; weights need none."""
    trained = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    asked = differentiated.set(True)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            yield
    finally:
        differentiated.reset(asked)
        for parameter in trained:
            parameter.requires_grad_(True)


def fisher_samples(
    model: Model, engine: Engine, cleans: Sequence[Clean], sites: Sequence[Site], n: int, seeds: Sequence[int]
) -> dict[Site, Float[Tensor, "prompt draw d"]]:
    """Gradients for `n` tokens drawn from each prompt's law (by a seed of its own): the mean of g g' is the Fisher information of a site's state."""
    laws = [clean.logits.float().softmax(-1).cpu() for clean in cleans]
    drawn = [
        torch.multinomial(law, n, replacement=True, generator=torch.Generator().manual_seed(seed))
        for law, seed in zip(laws, seeds, strict=True)
    ]
    tokens = torch.stack(drawn).to(model.device)

    def log_probability(logits: Float[Tensor, "prompt push vocab"]) -> Float[Tensor, "prompt push"]:
        return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    push = {site: torch.zeros(len(cleans), model.shape.width(site.kind)) for site in sites}
    found = gradients(model, engine, cleans, [push] * n, log_probability)
    return {site: torch.stack([one[site] for one in found], 1) for site in sites}
