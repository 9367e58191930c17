import pytest
import torch

from companion.priors import GAN

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 64, 64)]


def trained(dtype: torch.dtype = torch.float32, shape: tuple[int, int, int] = (1, 28, 28)) -> GAN:
    """A GAN whose running statistics are not those of a new one, in evaluation mode."""
    gan = GAN(shape, latent_dim=6, width=2).to(dtype)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gan.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(dtype))
        for _ in range(3):
            gan.discriminate(gan.decode(torch.randn(8, 6, generator=draw, dtype=torch.float64).to(dtype)))
    return gan.eval()


def latents(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_ranges(shape):
    gan = trained(shape=shape)
    x = gan.decode(latents(3))
    assert x.shape == (3, *shape) and x.min() >= 0 and x.max() <= 1 and x.std() > 1e-4
    assert gan.discriminate(x).shape == (3,)


def test_the_generator_is_that_of_its_formula():
    """(tanh + 1) / 2 of the last layer; the discriminator sees the image scaled back to [-1, 1]."""
    gan, z = trained(), latents(2)
    raw = gan.generator(z[:, :, None, None])
    torch.testing.assert_close(gan.decode(z), torch.sigmoid(2 * raw))
    torch.testing.assert_close(gan.discriminate(gan.decode(z)), gan.discriminator(torch.tanh(raw)).view(2))


def test_published_size_at_64_pixels():
    """Radford et al. 2016, fig. 1, with half its channels: 100 → 512×4×4 → 256×8×8 → 128×16×16 → 64×32×32 → 3×64×64."""
    gan = GAN((3, 64, 64))
    sizes, h = [], torch.zeros(2, 100, 1, 1)
    for layer in gan.generator:
        h = layer(h)
        if isinstance(layer, torch.nn.ConvTranspose2d):
            sizes.append(tuple(h.shape[1:]))
    assert sizes == [(512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32), (3, 64, 64)]
    channels = [layer.out_channels for layer in gan.discriminator if isinstance(layer, torch.nn.Conv2d)]
    assert channels == [64, 128, 256, 512, 1]


def test_weights_blown_up_forty_fold_stay_finite():
    gan = trained()
    with torch.no_grad():
        for p in gan.parameters():
            p.mul_(40)
    x = gan.decode(100 * latents(3))
    assert torch.isfinite(x).all() and torch.isfinite(gan.discriminate(x)).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"shape": (1, 30, 30)}, "side 28, 32 or 64"),
        ({"shape": (1, 28, 32)}, "side 28"),
        ({"shape": (28, 28)}, "side 28"),
        ({"shape": (0, 28, 28)}, "shape"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"width": 0}, "width"),
    ],
)
def test_bad_arguments_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        GAN(**config)


def test_bad_inputs_are_refused():
    gan = trained()
    with pytest.raises(ValueError, match="shape"):
        gan.decode(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="float32"):
        gan.decode(torch.zeros(2, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="NaN"):
        gan.discriminate(torch.full((1, 1, 28, 28), float("nan")))
