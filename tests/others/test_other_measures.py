"""What other libraries make of the same states, laws and gradients (`make oracles`)."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor

from mechdiff.architectures.sites import Site
from mechdiff.engine.choice import engine_for
from mechdiff.engine.distributions import js_nats, kl_nats
from mechdiff.engine.gradients import gradients
from mechdiff.engine.replay import ENGINES
from mechdiff.labels import CROSSED
from mechdiff.maps.maps import Map
from mechdiff.measures.attribution import formula as attribution_formula
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.validate import edits, planted
from mechdiff.validate.truths_heads import Heads

pytestmark = pytest.mark.oracles


def states(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two related sets of states, neither centred."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)) * np.linspace(0.3, 2, d) + random.normal(size=d)
    return x, x @ random.normal(size=(d, d)) / np.sqrt(d) + 0.5 * random.normal(size=(n, d)) + 3


def as_tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(one) for one in arrays]


@pytest.mark.parametrize(("n", "d"), [(12, 40), (60, 7)])
def test_cka_is_that_of_two_other_libraries(n: int, d: int) -> None:
    """repsim's `cka` divides an unbiased HSIC by biased ones (0.1.5), so its three unbiased HSIC are taken."""
    ckatorch, repsim = pytest.importorskip("ckatorch.core"), pytest.importorskip("repsim")
    x, y = states(n, d)
    for debiased, estimator in ((True, "song"), (False, "gretton")):
        mine = similarity_formula.linear_cka(*as_tensors(x, y), debiased=debiased)
        assert mine == pytest.approx(float(ckatorch.cka_base(*as_tensors(x, y), unbiased=debiased)), abs=1e-12)
        hsic = repsim.hsic([x, y], kernel_type="linear", estimator=estimator)
        assert mine == pytest.approx(hsic[0, 1] / np.sqrt(hsic[0, 0] * hsic[1, 1]), abs=1e-9)


def test_procrustes_is_scipys() -> None:
    x, y = states(50, 6)
    centred = [one - one.mean(0) for one in (x, y)]
    turn, values = scipy.linalg.orthogonal_procrustes(*centred)
    found = Map("procrustes").fit(*as_tensors(x, y)).transform(torch.from_numpy(x))
    np.testing.assert_allclose(found, y.mean(0) + centred[0] @ turn * values / np.square(centred[0]).sum(), rtol=1e-9)
    *_, disparity = scipy.spatial.procrustes(x, y)  # 1 - (sum of singular values)^2, both of unit norm
    assert similarity_formula.procrustes_distance(*as_tensors(x, y)) == pytest.approx(np.sqrt(2 - 2 * np.sqrt(1 - disparity)), rel=1e-9)


def test_whitened_procrustes_joins_the_canonical_variates_of_scikit_learn() -> None:
    """Without shrinkage it sends each canonical variate of one model to its partner in the other."""
    from sklearn.cross_decomposition import CCA

    x, y = states(200, 4)
    found = CCA(n_components=4, scale=False, max_iter=20_000, tol=1e-14).fit(x, y)
    fitted = Map("whitened_procrustes", shrinkage=0.0, floor=0.0).fit(*as_tensors(x, y))
    there = fitted.transform(torch.from_numpy(x)).numpy()
    variates, partners = (x - x.mean(0)) @ found.x_rotations_, (there - y.mean(0)) @ found.y_rotations_
    correlations = np.corrcoef(variates.T, partners.T)[:4, 4:]
    np.testing.assert_allclose(correlations, np.eye(4), atol=1e-4)


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_ridge_and_reduced_rank_are_those_of_scikit_learn(lam: float) -> None:
    """Reduced rank: ridge as least squares on rows with the penalty below them, its fitted values cut at their first principal axes."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import LinearRegression, Ridge

    x, y = states(40, 9)
    change, centred = y - x, x - x.mean(0)
    penalty = lam * np.square(centred).sum() / 9
    ridge = Ridge(alpha=penalty, solver="svd").fit(x, change) if lam else LinearRegression().fit(x, change)
    found = Map("anchored_ridge", lam=lam).fit(*as_tensors(x, y)).transform(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found - x, ridge.predict(x), rtol=1e-8, atol=1e-9)
    below = np.vstack([centred, np.sqrt(penalty) * np.eye(9)]) @ ridge.coef_.T
    for rank in (1, 4):
        axes = TruncatedSVD(rank, algorithm="arpack").fit(below).components_
        found = Map("rrr", lam=lam, rank=rank).fit(*as_tensors(x, y)).transform(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found - x - change.mean(0), centred @ ridge.coef_.T @ axes.T @ axes, rtol=1e-8, atol=1e-9)


def test_divergences_are_scipys() -> None:
    one, other = np.random.default_rng(0).normal(0, 4, (2, 5, 1000))
    p, q = softmax(one, -1), softmax(other, -1)
    np.testing.assert_allclose(kl_nats(*as_tensors(one, other)), entropy(p, q, axis=-1), rtol=1e-12)
    middle = (p + q) / 2
    np.testing.assert_allclose(
        js_nats(*as_tensors(one, other)), (entropy(p, middle, axis=-1) + entropy(q, middle, axis=-1)) / 2, rtol=1e-10
    )


@pytest.mark.parametrize("direction", CROSSED)
def test_integrated_gradients_are_captums(direction: str) -> None:
    """Captum moves the input of the output projection of one block, all heads together; here W_O is shared, so contributions move alike."""
    captum = pytest.importorskip("captum.attr")
    heads = Heads(planted.plant(edits.edit_group_value, n_prompts=2), direction)
    layer, steps = 1, 8
    block, own = heads.block(layer), heads.own
    weights = attribution_formula.weights_of("law", heads.pair.logits("base"), heads.pair.logits("tuned"))
    net = own.net

    for i, ids in enumerate(heads.pair.prompts):
        change = block.change()[[i]]
        pushes = [{Site(layer, "attn_proj"): change.sum(1) * point} for point in attribution_formula.midpoints(steps)]
        run, clean = ENGINES[engine_for(own.config)[0]], heads.pair.cleans[own.side][i]
        found = gradients(own, run, [clean], pushes, lambda logits, i=i: (logits * weights[i]).sum(-1))
        mean = torch.stack([one[Site(layer, "attn_proj")] for one in found]).mean(0)
        mine = attribution_formula.by_head(mean, change)[0]

        def metric(z: Tensor, ids: list[int] = ids, i: int = i) -> Tensor:
            """m of each row of z `[step, head * d_head]` at the last position."""

            def write(module: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
                return (torch.cat([inputs[0][:, :-1], z[:, None]], 1),)

            handle = net.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(write)
            try:
                logits = net(torch.tensor([ids]).expand(len(z), -1)).logits[:, -1]
            finally:
                handle.remove()
            return (logits * weights[i]).sum(-1)

        theirs = captum.IntegratedGradients(metric).attribute(
            block.other[[i]].flatten(1), baselines=block.own[[i]].flatten(1), n_steps=steps, method="riemann_middle"
        )
        np.testing.assert_allclose(mine, theirs.detach().reshape(block.n_heads, -1).sum(-1), atol=1e-5)
        assert mine.abs().max() > 1e-3
