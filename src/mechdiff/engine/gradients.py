"""Gradients of the next-token law with respect to states, at every site in one backward pass.

A state h at a site decides a law p(y | h). The Fisher information of that law,

    F = E_{y ~ p} g g',   g = d log p(y) / dh,

is what a small step dh costs in nats: KL(p || p moved) = dh' F dh / 2 + ... So a step counts by what the network makes of it, not by its length.
F is sampled: y is drawn from the model's own law, and one backward pass gives g at all sites at once.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mechdiff.engine.activations import Edit, edited
from mechdiff.engine.models import Model
from mechdiff.engine.sites import Site


def gradients(
    model: Model, ids: Sequence[int], sites: Sequence[Site], choose: Callable[[Float[Tensor, " vocab"]], Sequence[int]]
) -> dict[Site, Float[Tensor, "draw d"]]:
    """d log p(y) / dh at the last position of each site, for the tokens y that `choose` takes from the prompt's law; float32, on the CPU."""
    pushes: dict[Site, Tensor] = {}

    def pushed(site: Site) -> Edit:
        """Adds a zero to the last position's state: the gradient with respect to it is the one with respect to the state."""

        def push(tensor: Tensor) -> None:
            pushes[site] = torch.zeros(tensor.shape[-1], dtype=tensor.dtype, device=tensor.device, requires_grad=True)
            tensor[:, -1] += pushes[site]

        return push

    with torch.inference_mode(False), torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
        with edited(model, {site: pushed(site) for site in sites}):
            logits = model.net(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
        law = logits[0, -1].float().log_softmax(-1)
        tokens = choose(law.detach().exp())
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for number, token in enumerate(tokens):
            passed = torch.autograd.grad(law[token], [pushes[site] for site in sites], retain_graph=number < len(tokens) - 1)
            for site, gradient in zip(sites, passed, strict=True):
                found[site].append(gradient.float().cpu())
    return {site: torch.stack(rows) for site, rows in found.items()}


def fisher_samples(model: Model, ids: Sequence[int], sites: Sequence[Site], n: int, seed: int) -> dict[Site, Float[Tensor, "draw d"]]:
    """Gradients for `n` tokens drawn from the law of one prompt: the mean of g g' is the Fisher information of each site's state."""
    random = torch.Generator().manual_seed(seed)
    return gradients(model, ids, sites, lambda law: torch.multinomial(law.cpu(), n, replacement=True, generator=random).tolist())
