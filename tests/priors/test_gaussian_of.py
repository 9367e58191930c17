"""The Gaussian of images, and the densities that it has, against NumPy's mean and covariance."""

import numpy as np
import pytest
import torch

from companion.priors import Linear, gaussian_of


@pytest.mark.parametrize("mirror", [False, True])
def test_the_gaussian_of_images_is_numpys(mirror):
    images = (torch.randn(50, 24, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 25)).unflatten(
        1, (2, 3, 4)
    ) / 24
    factor, mean = gaussian_of(images, floor=0.1, mirror=mirror)
    rows = torch.cat([images, images.flip(-1)] if mirror else [images]).flatten(1).double().numpy()
    np.testing.assert_allclose(mean.flatten(), rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(factor @ factor.T, np.cov(rows.T, bias=True) + 0.01 * np.eye(24), atol=1e-10)
    with pytest.raises(ValueError, match=r"images: got shape \(0, 2, 3, 4\)"):
        gaussian_of(images[:0])


def test_a_singular_gaussian_has_no_density():
    factor, mean = gaussian_of(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)))
    near = torch.ones(3, 3).double() + torch.diag(torch.tensor([0, 0, 3e-16]).double())
    for linear in (Linear(torch.ones(3, 3)), Linear(near), Linear(factor, mean, shape=(1, 4, 4))):
        for call in (linear.log_prob, linear.encode):
            with pytest.raises(ValueError, match="log_prob: got a W that is singular"):
                call(linear.sample(2))
    sound = Linear(torch.diag(torch.tensor([1.0, 1e-5])))  # ill-conditioned, but no more than float32 can tell
    z = torch.ones(1, 2)
    torch.testing.assert_close(sound.encode(sound.decode(z)), z)
