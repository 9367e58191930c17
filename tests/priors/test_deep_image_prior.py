import torch
from torch import nn
from torch.nn import functional as F

from companion import measure, recover
from companion._support import normal
from companion.priors import DeepImagePrior

DOUBLE = torch.zeros((), dtype=torch.float64)
SHAPE = (2, 8, 8)


def as_layers(prior, z):
    """The network of one image by PyTorch's own layers, with its weights z, [latent_dim]."""
    layers, place = [], 0
    depth = prior.depth
    for index in range(2 * depth + 2):
        last = index == 2 * depth + 1
        width = prior.noise.shape[0]
        outputs, side = (SHAPE[0], 1) if last else (width, 3)
        convolution = nn.Conv2d(
            width, outputs, side, stride=2 if 1 <= index <= depth else 1, padding=side // 2, bias=last
        )
        number = convolution.weight.numel()
        shift = z[place + number : place + number + outputs] / 10
        with torch.no_grad():
            scaled = z[place : place + number].view_as(convolution.weight) * (2 / (width * side**2)) ** 0.5
            convolution.weight.copy_(scaled)
            if last:
                convolution.bias.copy_(shift)
        place += number + outputs
        if index > depth and not last:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        layers.append(convolution.double())
        if not last:
            norm = nn.InstanceNorm2d(width, affine=True).double()
            with torch.no_grad():
                norm.bias.copy_(shift)
            layers += [norm, nn.LeakyReLU(0.1)]
    assert place == len(z)
    return nn.Sequential(*layers, nn.Sigmoid())


def test_each_image_is_that_of_an_ordinary_network_with_its_weights():
    torch.set_default_dtype(torch.float64)
    try:
        prior = DeepImagePrior(SHAPE, width=3, depth=2).double()
        z = normal((2, prior.latent_dim), 0, DOUBLE, "z")
        expected = torch.cat([as_layers(prior, row)(prior.noise[None]) for row in z])
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(prior.decode(z), expected, rtol=1e-9, atol=1e-12)


def fitted(y, operator, **options):
    prior = DeepImagePrior(SHAPE, width=6, depth=2).double()
    return recover.gan_latent(prior, operator, y, restarts=1, method="adam", **options)


def test_a_fit_alone_is_the_fit_in_a_batch_and_explains_the_measurements():
    coarse = torch.rand(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, scale_factor=4, mode="bilinear")
    operator = measure.Downsample(SHAPE, 2)
    y = operator(smooth)
    together = fitted(y, operator, max_iterations=60, learning_rate=0.03)
    alone = fitted(y[:1], operator, max_iterations=60, learning_rate=0.03)
    torch.testing.assert_close(alone.x[0], together.x[0], rtol=0, atol=1e-6)
    assert (together.energy < 0.05 * together.trace["energy"][0]).all()


def test_a_fit_that_diverges_keeps_its_best_network():
    operator = measure.Identity(SHAPE)
    y = torch.full((2, *SHAPE), 0.3, dtype=torch.float64)
    found = fitted(y, operator, max_iterations=20, learning_rate=1e200)
    assert torch.isfinite(found.x).all() and not found.converged.any()
    assert (found.energy <= found.trace["energy"][0]).all()
