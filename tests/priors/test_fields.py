"""The Gaussian random field and its conditioning layers, against dense linear algebra of SciPy and against samples."""

import numpy as np
import pytest
import scipy.linalg
import torch
from flow_cases import randn
from scipy.stats import multivariate_normal

from companion.priors.conditioning import GaussianConditioning, HaarConditioning
from companion.priors.fields import GaussianField, fold, unfold


def dense_covariance(side: int, alpha: float, beta: float) -> np.ndarray:
    """β² L^(−1−α), from the matrix of the graph Laplacian by SciPy."""
    line = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
    laplacian = np.kron(line, np.eye(side)) + np.kron(np.eye(side), line)
    return beta**2 * scipy.linalg.fractional_matrix_power(laplacian, -1 - alpha).real


def pooling(side: int) -> np.ndarray:
    """The matrix A of 2×2 average pooling, [side²/4, side²]."""
    line = np.kron(np.eye(side // 2), [[0.5, 0.5]])
    return np.kron(line, line)


@pytest.mark.parametrize("coarsenings", [0, 1, 2])
def test_a_field_and_its_push_forwards_are_the_gaussians_of_the_paper(coarsenings: int) -> None:
    field, covariance = GaussianField(8, alpha=0.3, beta=1.5), dense_covariance(8, 0.3, 1.5)
    for side in [8, 4][:coarsenings]:
        field, covariance = field.coarsen(), pooling(side) @ covariance @ pooling(side).T
    x = torch.from_numpy(np.random.default_rng(0).multivariate_normal(np.zeros(len(covariance)), covariance, 5))
    reference = multivariate_normal(cov=covariance)
    np.testing.assert_allclose(field.covariance().numpy(), covariance, rtol=0, atol=1e-11)
    np.testing.assert_allclose(field.log_prob(x).numpy(), reference.logpdf(x.numpy()), rtol=1e-11)
    np.testing.assert_allclose(field.precision(x).numpy(), np.linalg.solve(covariance, x.numpy().T).T, rtol=1e-9)
    torch.testing.assert_close(field.decode(field.encode(x)), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("field", [GaussianField(4), GaussianField(4, alpha=0.5, finest=16)])
def test_samples_have_the_covariance_of_the_field(field: GaussianField) -> None:
    x, covariance = field.sample(40_000, seed=3), field.covariance()
    # each entry of a sample covariance has the variance (Σ_ij² + Σ_ii Σ_jj) / n
    error = (covariance.square() + torch.outer(covariance.diag(), covariance.diag())).div(len(x)).sqrt()
    assert ((x.T @ x / len(x) - covariance).abs() / error).max() < 4.5


def test_leading_modes_are_the_eigenvectors_of_largest_variance() -> None:
    field = GaussianField(8, finest=32)
    modes, std = field.leading(6)
    values = np.linalg.eigvalsh(field.covariance().numpy())[::-1][:6]
    np.testing.assert_allclose(std.square().numpy(), values, rtol=1e-10)
    torch.testing.assert_close(modes @ field.covariance() @ modes.T, torch.diag(std.square()), rtol=0, atol=1e-9)


def test_the_finest_field_has_standard_deviations_of_order_one() -> None:
    """The unscaled graph Laplacian at 64 × 64 and β = 2: 1.76 for α = 0.1, 3.03 for α = 0.5, in root mean square."""
    rms = [float(GaussianField(64, alpha).std.square().mean().sqrt()) for alpha in (0.1, 0.5)]
    assert rms == pytest.approx([1.76, 3.03], abs=0.01)


def test_fold_is_orthogonal_and_separates_the_mirror_images() -> None:
    x = randn(3, 6, 6)
    torch.testing.assert_close(unfold(fold(x)), x)
    torch.testing.assert_close(fold(x).square().sum((1, 2, 3)), x.square().sum((1, 2)))
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=x.dtype)[:, None, None]  # columns mirrored
    torch.testing.assert_close(fold(x.flip(-1)), signs * fold(x))


@pytest.mark.parametrize("field", [GaussianField(8), GaussianField(8, 0.5, finest=16), GaussianField(4)])
def test_conditioning_has_the_mean_and_covariance_of_theorem_3_1(field: GaussianField) -> None:
    layer, size = GaussianConditioning(field), field.side**2 // 4
    pool, covariance = torch.from_numpy(pooling(field.side)), field.covariance()
    # x = U x_c + W z: the layer is linear, so its columns are the images of unit vectors
    columns = layer.decode(torch.eye(4 * size, dtype=torch.float64))[0].flatten(1).T
    gain = covariance @ pool.T @ torch.linalg.inv(pool @ covariance @ pool.T)
    torch.testing.assert_close(columns[:, :size], gain, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        columns[:, size:] @ columns[:, size:].T, covariance - gain @ pool @ covariance, rtol=0, atol=1e-10
    )
    torch.testing.assert_close(pool @ columns, torch.eye(4 * size, dtype=torch.float64)[:size], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [4, 8, 32])
def test_conditioning_is_exactly_invertible_and_splits_the_density(side: int) -> None:
    field = GaussianField(side)
    layer, x = GaussianConditioning(field), field.sample(3, seed=1)
    encoded, log_det = layer.encode(x.view(-1, 1, side, side))
    coarse, z = encoded.tensor_split([side**2 // 4], 1)
    pooled = torch.nn.functional.avg_pool2d(x.view(-1, 1, side, side), 2).flatten(1)
    torch.testing.assert_close(coarse, pooled, rtol=0, atol=1e-11)
    decoded, back = layer.decode(encoded)
    torch.testing.assert_close(decoded.flatten(1), x, rtol=0, atol=1e-9)
    torch.testing.assert_close(back, -log_det, rtol=0, atol=0)
    # ρ(x) = ρ_c(A x) N(z) |det d(x_c, z)/dx|
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(
        field.coarsen().log_prob(coarse) + normal + log_det, field.log_prob(x), rtol=1e-9, atol=0
    )


def test_log_dets_are_those_of_the_jacobian() -> None:
    for layer, x in [
        (GaussianConditioning(GaussianField(4)), randn(1, 1, 4, 4)),
        (HaarConditioning((3, 2, 4), 0.37), randn(1, 3, 2, 4)),
    ]:
        jacobian = torch.autograd.functional.jacobian(lambda v, layer=layer: layer.encode(v)[0], x).reshape(
            x.numel(), -1
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], layer.encode(x)[1][0], rtol=0, atol=1e-9)


def test_a_float32_layer_keeps_the_average_to_rounding() -> None:
    layer = GaussianConditioning(GaussianField(16)).float()
    encoded = randn(2, 256).float()
    x = layer.decode(encoded)[0]
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(x, 2).flatten(1), encoded[:, :64], rtol=0, atol=2e-6)


def test_haar_conditioning_is_the_formula_of_appendix_g_and_estimates_mu() -> None:
    shape, mu = (2, 8, 4), 0.48
    layer = HaarConditioning(shape, mu)
    encoded = randn(4000, 64)
    x = layer.decode(encoded)[0]
    torch.testing.assert_close(layer.encode(x)[0], encoded)
    coarse = encoded[:, :16].view(-1, 2, 4, 2)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(x, 2), coarse)
    # μ Ãᵀ z has the covariance c/λ Ãᵀ Ã = c (I − 4 Aᵀ A), with c = λ μ²
    residual = (x - coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)).flatten(1)
    assert residual.square().mean() == pytest.approx(mu**2 / 4 * 0.75, rel=0.02)
    assert HaarConditioning.fitted(x).std * 2 == pytest.approx(mu, rel=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianField(5),
        lambda: GaussianField(8, beta=0.0),
        lambda: GaussianField(8, finest=24),
        lambda: GaussianField(2).coarsen(),
        lambda: GaussianConditioning(GaussianField(6)),
        lambda: HaarConditioning((1, 3, 4), 0.5),
        lambda: HaarConditioning((1, 4, 4), 0.0),
    ],
)
def test_bad_arguments_say_what_is_allowed(make) -> None:
    with pytest.raises(ValueError, match=r"got .*; allowed: "):
        make()
