"""Every map against one set of rules, and each against what it must find or fail at."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.linalg import orthogonal_procrustes
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mechdiff import load_map
from mechdiff.errors import StudyError
from mechdiff.labels import MAPS, PATCHES
from mechdiff.maps.affine import Affine
from mechdiff.maps.by_name import logit_directions
from mechdiff.maps.maps import DEFAULT, FAMILIES, WIDTHS_MAY_DIFFER, Map, check_ranks, is_the_mean
from oracles import maps as oracle

D = 50
ANCHORED = [name for name in FAMILIES if name not in ("mean", "ridge", "standardised_ridge", "pca", "procrustes", "whitened_procrustes")]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(family: str, d: int = D, **settings: object) -> Map:
    if family.startswith("logit"):
        settings.setdefault("directions", logit_directions(random(200, d, seed=9), 5))
    if family == "per_cluster":
        settings.setdefault("k", 2)
    return Map(family, **settings)


def rotation(d: int, size: float, seed: int = 5) -> Tensor:
    """A rotation whose planes turn by angles of about `size`."""
    skew = random(d, d, seed=seed)
    return torch.linalg.matrix_exp(size * (skew - skew.T) / (2 * d) ** 0.5)


def r2(mapped: Tensor, target: Tensor) -> float:
    return float(1 - (target - mapped).square().sum() / (target - target.mean(0)).square().sum())


# ---- all of them ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fit_gives_itself_and_transform_keeps_shape_and_dtype(family: str) -> None:
    source, target = random(40, D), random(40, D, seed=1)
    one = make(family)
    assert one.fit(source, target) is one
    for states in (random(7, D, seed=2), random(3, 2, D, seed=2).float()):
        moved = one.transform(states)
        assert moved.shape == states.shape
        assert moved.dtype == states.dtype
        torch.testing.assert_close(moved.reshape(-1, D)[0], one.transform(states.reshape(-1, D)[:1])[0])
    assert 0 <= one.rank_ <= D
    assert one.n_ == 40


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_map_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    one = make(family).fit(random(40, D), random(40, D, seed=1))
    one.save(tmp_path / "one.safetensors", site="L3.attn_out", direction="base_to_tuned")
    again, states = load_map(tmp_path / "one.safetensors"), random(9, D, seed=2)
    assert torch.equal(again.transform(states), one.transform(states))
    assert (again.family, again.rank_, again.lambda_, again.n_, again.warnings_) == (family, one.rank_, one.lambda_, 40, one.warnings_)
    with safe_open(str(tmp_path / "one.safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["mechdiff_map"])["site"] == "L3.attn_out"


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in WIDTHS_MAY_DIFFER])
def test_widths_that_differ_are_refused(family: str) -> None:
    with pytest.raises(StudyError, match=r"50 and 40.*ridge"):
        make(family).fit(random(9, 50), random(9, 40, seed=1))


@pytest.mark.parametrize("family", WIDTHS_MAY_DIFFER)
def test_widths_that_differ_where_they_may(family: str) -> None:
    source = random(300, 20)
    matrix = torch.linalg.qr(random(20, 8, seed=3))[0]
    one = make(family).fit(source, source @ matrix + 1)
    moved = one.transform(random(5, 20, seed=4))
    assert moved.shape == (5, 8)
    if family in ("ridge", "standardised_ridge", "pca"):
        torch.testing.assert_close(moved, random(5, 20, seed=4) @ matrix + 1, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "identity"])
def test_features_that_do_not_vary_are_left_out_and_counted(family: str) -> None:
    source, target = random(60, 10), random(60, 10, seed=1)
    source[:, 3], target[:, 7] = 2.0, -1.0
    one = make(family, 10).fit(source, target)
    assert one.dropped_ == 2
    moved = one.transform(random(4, 10, seed=2)).isfinite()
    assert moved.all()
    if one.norm_ratio_ is None and one.centres_ is None and family in DEFAULT and family != "mean":
        shifted = one.transform(source)[:, 3] - source[:, 3]
        torch.testing.assert_close(shifted, (target - source).mean(0)[3].expand(60))


def test_an_unknown_map_and_unequal_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such map"):
        Map("rigde").fit(random(3, 2), random(3, 2))
    with pytest.raises(StudyError, match="3 rows of the source and 4"):
        Map("shift").fit(random(3, 2), random(4, 2))
    save_file({"x": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(StudyError, match="no map of mechdiff"):
        load_map(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_text("nothing")
    with pytest.raises(StudyError, match="not a readable"):
        load_map(tmp_path / "y.safetensors")


def test_every_arm_that_is_a_map_has_its_fit() -> None:
    assert tuple(FAMILIES) == (*PATCHES[:3], *MAPS)


# ---- identical models ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 30, 60, 300])
@pytest.mark.parametrize(
    "family", [*(name for name in DEFAULT if name != "mean"), "per_cluster", "rank_truncated", "rescaled", "norm_matched", "logit_subspace"]
)
def test_anchored_maps_of_identical_models_are_the_identity_whatever_the_rows(family: str, n: int) -> None:
    states, others = random(n, D) + 3, random(20, D, seed=1) + 3
    one = make(family).fit(states, states, select=(others, others))
    assert (one.transform(others) - others).norm() <= 1e-12 * others.norm()
    if family != "norm_matched":
        assert one.rank_ == 0


@pytest.mark.parametrize("family", ["ridge", "standardised_ridge", "procrustes", "whitened_procrustes", "pca"])
def test_maps_that_are_not_anchored_fail_on_identical_models_with_few_rows_and_say_so(family: str) -> None:
    states, others = random(30, D), random(200, D, seed=1)
    one = make(family).fit(states, states)
    assert r2(one.transform(others), others) < 0.7
    [said] = one.warnings_
    assert "30 rows for 50 features" in said
    assert one.identical_score_ is not None
    assert one.identical_score_ < 0.7
    many = make(family).fit(random(5 * D, D), random(5 * D, D))
    assert many.warnings_ == ()


# ---- what each must find -------------------------------------------------------------------------------------------------------------


def test_shift_and_mean() -> None:
    source, target = random(9, 4), random(9, 4, seed=1) + 5
    torch.testing.assert_close(Map("shift").fit(source, target).transform(source), source + target.mean(0) - source.mean(0))
    torch.testing.assert_close(Map("mean").fit(source, target).transform(source), target.mean(0).expand(9, -1))


def test_the_slope_of_each_feature() -> None:
    source = random(200, 6)
    slopes = torch.linspace(0.2, 3, 6).double()
    one = Map("diag_affine").fit(source, source * slopes + 2)
    torch.testing.assert_close(one.transform(source), source * slopes + 2)
    assert one.rank_ == 6


def test_a_rotation_is_found_exactly_where_the_rows_allow_and_nothing_anchors() -> None:
    source, turn = random(120, D), rotation(D, 3.0)
    one = Map("anchored_procrustes", lam=0.0).fit(source, 1.5 * source @ turn + 2)
    states = random(9, D, seed=4)
    torch.testing.assert_close(one.transform(states), 1.5 * states @ turn + 2, atol=1e-10, rtol=1e-10)


def test_procrustes_is_scipys() -> None:
    source, target = random(120, 8), random(120, 8, seed=1)
    x, y = source - source.mean(0), target - target.mean(0)
    turn, total = orthogonal_procrustes(x.numpy(), y.numpy())
    expected = target.mean(0) + x @ torch.from_numpy(turn) * (total / x.square().sum())
    torch.testing.assert_close(Map("procrustes").fit(source, target).transform(source), expected)
    torch.testing.assert_close(Map("anchored_procrustes", lam=0.0).fit(source, target).transform(source), expected)


@pytest.mark.parametrize("n", [30, 120])
def test_a_standardised_ridge_is_that_of_scikit_learn_and_the_width_of_a_feature_is_nothing_to_it(n: int) -> None:
    """Its lambda is in units of tr(X'X)/d, which of standardised states is the number of rows."""
    wide = torch.logspace(-2, 2, D).double()
    source, target, held_out = random(n, D) * wide + 3, random(n, D, seed=1) * wide.flip(0), random(9, D, seed=2) * wide
    for lam in (0.01, 1.0):
        by_side = TransformedTargetRegressor(make_pipeline(StandardScaler(), Ridge(alpha=lam * n)), transformer=StandardScaler())
        expected = torch.from_numpy(by_side.fit(source.numpy(), target.numpy()).predict(held_out.numpy()))
        found = Map("standardised_ridge", lam=lam).fit(source, target).transform(held_out)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        scaled = Map("standardised_ridge", lam=lam).fit(source / wide, target / wide.flip(0)).transform(held_out / wide)
        torch.testing.assert_close(scaled * wide.flip(0), found, rtol=1e-8, atol=1e-8)
        plain = Map("ridge", lam=lam).fit(source, target).transform(held_out)
        assert (plain - found).norm() > 0.1 * (found - target.mean(0)).norm()


@pytest.mark.parametrize("family", ["procrustes", "whitened_procrustes"])
@pytest.mark.parametrize("n", [30, 300])
def test_a_cut_map_of_identical_models_is_the_projection_on_what_is_kept(family: str, n: int) -> None:
    """What a sweep over cuts takes for a change of many dimensions is there where nothing has changed."""
    spread = torch.arange(1, D + 1).double() ** -0.5
    states = random(n, D) * spread + 3
    centred = states - states.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    for cut in (1, 8, 20):
        axes = vectors[:, -cut:]
        moved = make(family, cut=cut).fit(states, states).transform(states)
        torch.testing.assert_close(moved, states.mean(0) + centred @ axes @ axes.T)
        assert r2(moved, states) == pytest.approx(float(values[-cut:].sum() / values.sum()))
        assert torch.linalg.matrix_rank(moved - states.mean(0), rtol=1e-9) == cut


@pytest.mark.parametrize("family", ["procrustes", "whitened_procrustes"])
def test_a_cut_is_the_map_between_the_components_that_are_kept(family: str) -> None:
    """Fitted in the coordinates of numpy's principal components; a cut that keeps all of them is the map without a cut."""
    source, target, held_out = random(120, 8), random(120, 8) @ random(8, 8, seed=1), random(9, 8, seed=2)
    (mean_x, x_axes), (mean_y, y_axes) = ((one.mean(0), torch.linalg.svd(one - one.mean(0)).Vh[:3]) for one in (source, target))
    inside = make(family).fit((source - mean_x) @ x_axes.T, (target - mean_y) @ y_axes.T)
    expected = mean_y + inside.transform((held_out - mean_x) @ x_axes.T) @ y_axes
    torch.testing.assert_close(make(family, cut=3).fit(source, target).transform(held_out), expected)
    for whole in (8, 500):
        torch.testing.assert_close(
            make(family, cut=whole).fit(source, target).transform(held_out), make(family).fit(source, target).transform(held_out)
        )


def test_anchored_procrustes_in_the_span_is_the_whole_problem() -> None:
    """2 N < d: the small problem's answer minimises |XQ - Y|^2 + lambda |Q - I|^2 over all rotations (the d x d singular value decomposition)."""
    source, target, lam = random(8, D), random(8, D, seed=1), 0.3
    x, y = source - source.mean(0), target - target.mean(0)
    u, _, vh = torch.linalg.svd(x.T @ y + lam * x.square().sum() / D * torch.eye(D, dtype=torch.float64))
    turn = u @ vh
    scale = (x @ turn * y).sum() / x.square().sum()
    states = random(20, D, seed=4)
    expected = target.mean(0) + (states - source.mean(0)) @ turn * scale
    torch.testing.assert_close(Map("anchored_procrustes", lam=lam).fit(source, target).transform(states), expected)


def test_a_small_rotation_with_fewer_rows_than_features_needs_the_anchor() -> None:
    n, d = 225, 512
    spread = torch.arange(1, d + 1).double() ** -0.5
    source, held_out, turn = random(n, d) * spread, random(200, d, seed=1) * spread, rotation(d, 0.1)
    target = source @ turn
    anchored = Map("anchored_procrustes").fit(source, target).transform(held_out)
    other = Map("whitened_procrustes").fit(source, target).transform(held_out)
    assert r2(anchored, held_out @ turn) > 0.98
    assert r2(other, held_out @ turn) < 0.7


def test_the_select_split_chooses_the_penalty_of_procrustes() -> None:
    source, turn = random(60, D), rotation(D, 1.0)
    noisy = source @ turn + 0.01 * random(60, D, seed=2)
    chosen = {}
    for name, held_out in (("turned", (random(40, D, seed=3), random(40, D, seed=3) @ turn)), ("not", (random(40, D, seed=3),) * 2)):
        chosen[name] = Map("anchored_procrustes").fit(source, noisy, select=held_out).lambda_
    assert chosen["turned"] == 0
    assert chosen["not"] == 10


def test_ranks_are_measured_and_differ() -> None:
    source = random(100, D)
    target = source + source @ random(D, D, seed=1) * 0.1 + 1
    maps = {rank: Map("rrr", rank=rank, lam=0.01).fit(source, target) for rank in (0, 1, 4, 16)}
    assert [one.rank_ for one in maps.values()] == [0, 1, 4, 16]
    check_ranks(maps)
    cut = Map("rank_truncated", rank=4, lam=0.01).fit(source, target)
    assert cut.rank_ == 4
    loss = {name: float((one.transform(source) - target).square().sum()) for name, one in (("rrr", maps[4]), ("cut", cut))}
    assert loss["rrr"] < loss["cut"], "least squares keeps what fits best, not what is largest"


def test_one_map_under_two_ranks_is_refused_if_there_are_more_dimensions_to_find() -> None:
    source = random(100, D)
    target = source + source @ random(D, 4, seed=1) @ random(4, D, seed=2)
    maps = {rank: Map("rrr", rank=rank, lam=0.0).fit(source, target) for rank in (1, 4, 8, 32)}
    assert [one.rank_ for one in maps.values()] == [1, 4, 4, 4]
    check_ranks(maps)  # the change has no more than 4: those are one map, and rightly so
    with pytest.raises(StudyError, match="rank_not_applied: asked for 2, measured 1"):
        check_ranks({1: maps[1], 2: maps[1], 4: maps[4]})


@pytest.mark.parametrize("n", [30, 100, 350])
def test_a_map_that_predicts_is_never_called_the_mean_though_it_has_as_many_dimensions_as_rows(n: int) -> None:
    source = random(n, D)
    target = source + 0.1 * source @ random(D, D, seed=1) + 0.3 * random(n, D, seed=3)
    one = Map("anchored_ridge", lam=1.0).fit(source, target)
    assert r2(one.transform(source), target) > 0.8
    assert not is_the_mean(r2(one.transform(source), target), one.rank_, n)
    mean = Map("mean").fit(source, target)
    assert is_the_mean(r2(mean.transform(source), target), mean.rank_, n)


@pytest.mark.parametrize("n", [20, 120])
def test_learned_maps_are_their_textbook_formulas(n: int) -> None:
    source, target, states = random(n, D), random(n, D, seed=1), random(9, D, seed=2)
    expected = {
        ("anchored_ridge", None): oracle.ridge_of_change(source, target, 0.3),
        ("rrr", 5): oracle.reduced_rank_of_change(source, target, 0.3, 5),
        ("anchored_procrustes", None): oracle.anchored_procrustes(source, target, 0.3),
    }
    for (family, rank), matrix in expected.items():
        one = Map(family, lam=0.3, **({} if rank is None else {"rank": rank})).fit(source, target)
        torch.testing.assert_close(one.transform(states), oracle.apply(states, source.mean(0), matrix, target.mean(0)))
        if rank:
            assert one.rank_ == int(torch.linalg.matrix_rank(matrix - torch.eye(D).double())) == rank


@pytest.mark.bits
@pytest.mark.parametrize("family", ["logit_subspace", "logit_subspace_joint"])
def test_an_interchange_writes_the_other_state_inside_and_keeps_its_own_outside(family: str, tmp_path: Path) -> None:
    directions = logit_directions(random(200, D, seed=9), 5)
    one = Map(family, directions=directions, mode="interchange").fit(random(9, D), random(9, D, seed=1))
    states, own = random(3, 2, D, seed=2), random(3, 2, D, seed=3)
    moved = one.transform(states, own)
    torch.testing.assert_close(moved @ directions, states @ directions)
    outside = torch.eye(D).double() - directions @ directions.T
    torch.testing.assert_close(moved @ outside, own @ outside)
    assert torch.equal(one.transform(own, own), own)
    assert one.rank_ == 5
    one.save(tmp_path / "one.safetensors")
    assert torch.equal(load_map(tmp_path / "one.safetensors").transform(states, own), moved)
    with pytest.raises(StudyError, match=r"given own states of none.*own=\.\.\."):
        one.transform(states)
    with pytest.raises(StudyError, match="given mode 'swap', expected one of: ridge, interchange"):
        Map(family, directions=directions, mode="swap").fit(states[:, 0], own[:, 0])


def test_clusters_of_one_map_shrink_to_the_map_of_all() -> None:
    clusters, coefficients = random(4, D, seed=3) * 5, 0.2 * random(D, D, seed=1)
    source, held_out = (clusters.repeat(rows // 4, 1) + random(rows, D, seed=seed) for rows, seed in ((120, 4), (200, 5)))
    target = source + source @ coefficients + 0.1 * random(120, D, seed=6)
    errors = {
        family: float((Map(family).fit(source, target).transform(held_out) - held_out - held_out @ coefficients).square().sum())
        for family in ("anchored_ridge", "per_cluster", "shift")
    }
    assert errors["per_cluster"] <= 1.2 * errors["anchored_ridge"] < 0.2 * errors["shift"]


@pytest.mark.parametrize("n", [1, 2])
def test_whitening_so_few_rows_that_nothing_varies_gives_the_mean(n: int) -> None:
    source, target = random(1, D).expand(n, -1), random(1, D, seed=1).expand(n, -1)
    torch.testing.assert_close(Map("whitened_procrustes").fit(source, target).transform(source), target.clone())


def test_a_map_inside_the_logit_subspace_leaves_the_rest() -> None:
    source = random(100, D)
    directions = logit_directions(random(200, D, seed=9), 5)
    moved = Map("logit_subspace", directions=directions).fit(source, source + source @ random(D, D, seed=1)).transform(source) - source
    moved = moved - moved.mean(0)
    torch.testing.assert_close(moved @ directions @ directions.T, moved)
    top = torch.linalg.svd(random(200, D, seed=9)).Vh[:5].T
    torch.testing.assert_close(directions @ directions.T, top @ top.T)


def test_clusters_with_maps_of_their_own() -> None:
    source = torch.cat([random(100, 5) + 20, random(100, 5, seed=1) - 20])
    target = torch.cat([2 * source[:100], source[100:] + 3])
    one = Map("per_cluster", k=2).fit(source, target)
    torch.testing.assert_close(one.transform(source), target, atol=1e-2, rtol=1e-2)


def test_rescaled_has_the_targets_variance_and_norms_match() -> None:
    source = random(20, D)
    target = source + source @ random(D, D, seed=1) * 0.3 + 1
    moved = Map("rescaled", lam=1.0).fit(source, target).transform(source)
    torch.testing.assert_close((moved - moved.mean(0)).square().sum(), (target - target.mean(0)).square().sum())
    moved = Map("norm_matched", lam=1.0).fit(source, target).transform(source)
    torch.testing.assert_close(moved.norm(dim=1).mean(), target.norm(dim=1).mean())


@pytest.mark.parametrize(("c", "rank"), [(0.0, 3), (0.5, 40), (-1.0, 40)])
def test_the_rank_of_a_multiple_of_the_identity_and_a_thin_product(c: float, rank: int) -> None:
    left, right = random(40, 3), random(3, 40, seed=1)
    one = Affine(
        mean_in=torch.zeros(40).double(),
        mean_out=torch.zeros(40).double(),
        diagonal=torch.full((40,), 1 + c).double(),
        left=left,
        right=right,
    )
    assert one.rank_of_change() == rank
    assert int(torch.linalg.matrix_rank(c * torch.eye(40).double() + left @ right)) == rank
