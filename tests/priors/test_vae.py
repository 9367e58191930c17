import math

import numpy as np
import pytest
import torch
from scipy import stats

from companion.priors import VAE

KINDS = {
    "dense": {"shape": (1, 3, 3), "latent_dim": 2, "hidden": (6,)},
    "dense gaussian": {"shape": (1, 3, 3), "latent_dim": 2, "hidden": (6, 5), "likelihood": "gaussian"},
    "conv": {"shape": (2, 8, 16), "latent_dim": 3, "hidden": (3, 4, 5), "kind": "conv"},
    "conv gaussian": {
        "shape": (3, 4, 4),
        "latent_dim": 2,
        "hidden": (3, 4),
        "kind": "conv",
        "likelihood": "gaussian",
    },
}


def perturbed(size: float = 0.5, dtype: torch.dtype = torch.float64, **config: object) -> VAE:
    vae = VAE(**config).to(dtype)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(size * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(dtype))
    return vae


def pictures(vae: VAE, number: int = 3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.rand(number, *vae.shape, generator=draw, dtype=torch.float64).to(vae.like.dtype)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def config(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_bound_is_the_log_likelihood_less_the_divergence_of_the_posterior(likelihood):
    """ELBO = log p(x) − KL(q(z|x) ‖ p(z|x)), every term by quadrature over a latent of one dimension."""
    vae = perturbed(shape=(1, 2, 2), latent_dim=1, hidden=(4,), likelihood=likelihood)
    x = pictures(vae, 1)
    z = np.linspace(-12, 12, 6001)
    with torch.no_grad():
        latents = torch.from_numpy(z)[:, None]
        mean_image = vae.decode(latents).flatten(1).numpy()
        mean, log_variance = (float(v) for v in vae.posterior(x))
        std = float(vae.std) if likelihood == "gaussian" else 0.0
    pixels = x.flatten().numpy()
    if likelihood == "bernoulli":
        log_likelihood = (pixels * np.log(mean_image) + (1 - pixels) * np.log(1 - mean_image)).sum(1)
    else:
        log_likelihood = stats.norm(mean_image, std).logpdf(pixels).sum(1)
    with torch.no_grad():
        many = vae.log_likelihood(x.expand(len(z), -1, -1, -1), latents)
    np.testing.assert_allclose(many.numpy(), log_likelihood, rtol=1e-6)
    joint = log_likelihood + stats.norm.logpdf(z)
    evidence = math.log(np.trapezoid(np.exp(joint), z))
    q = stats.norm(mean, math.exp(0.5 * log_variance))
    divergence = np.trapezoid(q.pdf(z) * (q.logpdf(z) - (joint - evidence)), z)
    exact = evidence - divergence
    with torch.no_grad():
        draws = vae.elbo(x.expand(20_000, -1, -1, -1), seed=0)
    error = float(draws.std()) / math.sqrt(len(draws))
    assert abs(float(draws.mean()) - exact) < 4 * error and error < 0.1
    assert exact < evidence and divergence > 1e-3


def test_bits_per_dim_bounds_the_codelength_of_pixels():
    """Where the decoder ignores z the bound is exact: the Gaussian's log-density, averaged over each pixel's cell."""
    vae = VAE(shape=(1, 1, 2), latent_dim=1, hidden=(2,), likelihood="gaussian").double()
    with torch.no_grad():
        vae.decoder[-1].weight.zero_()
        for head in (vae.mean_head, vae.variance_head):
            head.weight.zero_()
    x = torch.tensor([[[[0.0, 100 / 255]]]], dtype=torch.float64)
    many = vae.bits_per_dim(x.expand(4000, -1, -1, -1), seed=0)
    u = (np.arange(2000) + 0.5) / 2000 - 0.5
    log_density = [
        stats.norm(0.5, float(vae.std.detach())).logpdf((k + u) / 255).mean() - math.log(255) for k in (0, 100)
    ]  # of the pixel's cell: the density of x times the width of a cell
    assert abs(float(many.detach().mean()) + sum(log_density) / (2 * math.log(2))) < 1e-3


def test_weights_blown_up_forty_fold_stay_finite(config):
    vae = perturbed(1.0, torch.float32, **config)
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(40)
    x = pictures(vae)
    values = (vae.encode(x), vae.decode(100 * torch.ones(2, vae.latent_dim)), vae.elbo(x), vae.sample(2))
    assert all(torch.isfinite(v).all() for v in values)


def test_the_published_layers():
    dense = VAE()
    sizes = [p.shape[::-1] for name, p in dense.named_parameters() if "weight" in name]
    assert sizes == [(784, 500), (500, 500), (20, 500), (500, 500), (500, 784), (500, 20), (500, 20)]
    assert any(v < 0 for v in perturbed(**KINDS["conv"]).encode(torch.rand(8, 2, 8, 16).double()).flatten())
    conv = VAE((1, 32, 32), latent_dim=256, kind="conv")
    assert conv.decode(torch.zeros(2, 256)).shape == (2, 1, 32, 32)
    assert not any("Norm" in type(m).__name__ or "Dropout" in type(m).__name__ for m in conv.modules())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "wide"}, "kind"),
        ({"likelihood": "laplace"}, "likelihood"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"hidden": (5, 0)}, "hidden"),
        ({"shape": (28, 28)}, "shape"),
        ({"shape": (1, 28, 28), "kind": "conv"}, "divisible by 8"),
    ],
)
def test_bad_arguments_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        VAE(**config)


def test_bad_inputs_are_refused():
    vae = VAE(**KINDS["dense"])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        vae.elbo(torch.full((1, 1, 3, 3), 1.1))
    with pytest.raises(ValueError, match="shape"):
        vae.decode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="gaussian"):
        vae.bits_per_dim(torch.rand(1, 1, 3, 3))
