"""What every model owes: one list of small examples, one test of each promise, for all of them."""

import copy
import io
import math
import pickle

import pytest
import torch
from flow_cases import perturb, rand, randn
from torch.func import grad, jvp, vmap

from companion import priors
from companion.priors import Flow, Prior, memory_saving

SQUARE = randn(12, 12) / 4 + torch.eye(12, dtype=torch.float64)
EXAMPLES: dict[str, list[dict]] = {
    "Glow": [
        {"shape": (3, 4, 4), "levels": 2, "steps": 2, "width": 5, "squeeze": "haar", "colours": "opponent"},
        {"shape": (1, 4, 8), "levels": 2, "steps": 1, "width": 5, "conv1x1": "lu", "pixels": "logit"},
        {"shape": (2, 4, 4), "levels": 1, "steps": 2, "width": 5, "conv1x1": "dense", "coupling": "additive"},
    ],
    "ImageMsIGN": [
        {"shape": (1, 8, 8), "scales": 3, "steps": 1, "width": 3, "mu": (0.4, 0.3), "mean": -0.2, "std": 0.5},
        {"shape": (2, 4, 4), "scales": 2, "steps": 2, "width": 3, "mu": (3.0,), "pixels": "logit"},
    ],
    "RealNVP": [
        {"shape": (1, 6, 6), "scales": 2, "blocks": 1, "width": 3},
        {"shape": (2, 3, 5), "scales": 1, "blocks": 2, "width": 3, "coupling": "additive", "pixels": "uniform"},
    ],
    "PointFlow": [{"couplings": 3, "width": 5}, {"couplings": 4, "width": 5, "dimension": 5, "coupling": "additive"}],
    "Linear": [{"weight": SQUARE, "mean": randn(12), "shape": (3, 2, 2)}, {"weight": SQUARE[:, :5]}],
    "GaussianField": [{"side": 4}, {"side": 2, "alpha": 0.5, "beta": 1.0, "finest": 8}],
    "VAE": [
        {"shape": (1, 4, 4), "latent_dim": 3, "hidden": (6,)},
        {"shape": (3, 8, 8), "latent_dim": 3, "hidden": (4, 5), "kind": "conv", "likelihood": "gaussian"},
    ],
    "GAN": [{"shape": (1, 28, 28), "latent_dim": 4, "width": 4}, {"shape": (3, 32, 32), "latent_dim": 4, "width": 8}],
    "DeepImagePrior": [{"shape": (2, 4, 8), "width": 3, "depth": 1}],
}
CASES = [pytest.param(name, each, id=f"{name}{i}") for name in EXAMPLES for i, each in enumerate(EXAMPLES[name])]


def make(name: str, config: dict, dtype: torch.dtype = torch.float64) -> Prior:
    """The model with every parameter perturbed, as fresh couplings are the identity."""
    return perturb(priors.MODELS[name](**config).to(dtype).eval(), 0.1)


def only_densities(model: Prior) -> Prior:
    if not hasattr(model, "log_prob") or model.latent_dim != math.prod(model.shape):
        pytest.skip("a generator without a density")
    return model


def jacobian(function, at: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.functional.jacobian(lambda row: function(row[None])[0], at)
    return found.reshape(-1, at.numel())


def test_every_public_model_has_an_example():
    lacking = set(priors.MODELS) - set(EXAMPLES)
    assert not lacking, f"no example of {lacking} in EXAMPLES of this file"
    assert set(EXAMPLES) <= set(priors.MODELS) & set(dir(priors))


@pytest.mark.parametrize("name, config", CASES)
def test_fixed_numbers_are_buffers_which_follow_the_model_to_a_device(name, config):
    for path, module in make(name, config).named_modules():
        plain = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not plain, f"{name}: {path or 'itself'} keeps the plain tensor {plain}; allowed: register_buffer"


@pytest.mark.parametrize("name, config", CASES)
def test_round_trips_log_determinants_and_both_densities(name, config):
    model = only_densities(make(name, config))
    x, z = 0.1 + 0.8 * rand(2, *model.shape), randn(2, model.latent_dim)
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=1e-8)
    image = model.decode(z)
    torch.testing.assert_close(model.encode(image), z, rtol=0, atol=1e-8)
    torch.testing.assert_close(model.log_prob_latent(z), model.log_prob(image), rtol=1e-9, atol=1e-7)
    latent = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    stretched = torch.stack([torch.linalg.slogdet(jacobian(model.decode, row))[1] for row in z])
    torch.testing.assert_close(model.log_prob_latent(z), latent - stretched, rtol=1e-9, atol=1e-8)
    (again, outward), (back, inward) = model.decode_with_log_det(z), model.encode_with_log_det(image)
    assert torch.equal(again, image) and torch.equal(back, model.encode(image))
    torch.testing.assert_close(outward, stretched, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(inward, -outward, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name, config", CASES)
def test_an_image_depends_neither_on_its_neighbours_nor_on_the_mode(name, config):
    model = make(name, config)
    z = randn(3, model.latent_dim)
    x = model.decode(z)
    assert x.shape == (3, *model.shape) and x.dtype == torch.float64
    for alone, together in zip(z.split(1), x.split(1), strict=True):
        torch.testing.assert_close(model.decode(alone), together, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        model.decode(z).fill_(torch.nan)
    assert torch.equal(z, randn(3, model.latent_dim)), f"{name}.decode changes z, or returns its memory"
    if name != "GAN":  # batch normalisation, as its docstring says
        torch.testing.assert_close(copy.deepcopy(model).train().decode(z), x, rtol=0, atol=0)
    sample = model.sample(2, seed=5)
    assert sample.shape == (2, *model.shape) and torch.equal(sample, model.sample(2, seed=5))
    assert not torch.equal(sample, model.sample(2, seed=6))


@pytest.mark.parametrize("name, config", CASES)
def test_every_parameter_gets_a_gradient(name, config):
    model = make(name, config)
    x = 0.1 + 0.8 * rand(4, *model.shape)
    if not list(model.parameters()):
        pytest.skip("learns nothing")
    if isinstance(model, Flow):
        loss = model.log_prob(x)
    elif hasattr(model, "elbo"):
        loss = model.elbo(x)
    else:
        loss = model.decode(randn(4, model.latent_dim)).flatten(1).square().sum(1)
        loss = loss + model.discriminate(x) if hasattr(model, "discriminate") else loss
    loss.sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name, config", CASES)
def test_saved_copied_and_pickled_models_are_the_same(name, config, dtype, tmp_path):
    model = make(name, config, dtype)
    z = randn(2, model.latent_dim, dtype=dtype)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    again = priors.MODELS[name](**config).to(dtype).eval()
    again.load_state_dict(torch.load(io.BytesIO(buffer.getvalue())))
    stored = priors.load(priors.save(model, tmp_path / "model.safetensors", {"a": 1}))
    assert stored.card == {"a": 1} and stored.config == model.config and not stored.training
    twins = [again, stored, copy.deepcopy(model)]
    if name != "RealNVP":  # torch pickles no weight normalisation
        twins.append(pickle.loads(pickle.dumps(model)))
    for twin in twins:
        assert type(twin) is type(model) and torch.equal(twin.decode(z), model.decode(z))
    assert type(model).__name__ in repr(model)
    half = priors.load(priors.save(model, tmp_path / "half.safetensors", half=True))
    assert half.like.dtype == torch.float32
    torch.testing.assert_close(half.decode(z.float()), model.decode(z).float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name, config", CASES)
def test_transforms_of_torch_func_give_ordinary_derivatives(name, config):
    model = make(name, config)
    z, direction = randn(2, model.latent_dim), randn(2, model.latent_dim, seed=9)
    model.decode(z)  # whatever is kept from before
    dense = torch.stack([jacobian(model.decode, row) @ d for row, d in zip(z, direction, strict=True)])
    pushed = jvp(model.decode, (z,), (direction,))[1].flatten(1)
    torch.testing.assert_close(pushed, dense, rtol=1e-8, atol=1e-9)
    leaf = z.clone().requires_grad_()
    (ordinary,) = torch.autograd.grad(model.decode(leaf).square().sum(), leaf)
    single = vmap(grad(lambda row: model.decode(row[None]).square().sum()))(z)
    torch.testing.assert_close(single, ordinary, rtol=1e-9, atol=1e-9)
    if isinstance(only_densities(model), Flow):
        x = 0.1 + 0.8 * rand(2, *model.shape)
        leaf = x.clone().requires_grad_()
        (ordinary,) = torch.autograd.grad(model.log_prob(leaf).sum(), leaf)
        single = vmap(grad(lambda row: model.log_prob(row[None])[0]))(x)
        torch.testing.assert_close(single, ordinary, rtol=1e-8, atol=1e-8)
    copy.deepcopy(model).state_dict()  # and no derivative stays behind, which copies would refuse


@pytest.mark.parametrize("name, config", CASES)
def test_memory_saving_gives_the_same_gradients(name, config):
    model = make(name, config)
    if not isinstance(model, Flow):
        pytest.skip("no flow")
    x = (0.1 + 0.8 * rand(2, *model.shape)).requires_grad_()
    inputs = [x, *model.parameters()]
    ordinary = torch.autograd.grad(model.log_prob(x).sum(), inputs)
    saving = torch.autograd.grad(memory_saving(model).log_prob(x).sum(), inputs)
    for mine, theirs in zip(saving, ordinary, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name, config", CASES)
def test_other_dtypes_and_devices_are_refused_or_made_to_work(name, config):
    model = make(name, config, torch.float32)
    z = randn(2, model.latent_dim, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"z: got torch.float64 on cpu; allowed: torch.float32"):
        model.decode(z.double())
    with pytest.raises(ValueError, match=r"prior: got weights in torch.float16; allowed: torch.float32 or"):
        copy.deepcopy(model).half().decode(z.half())
    torch.set_default_device("meta")  # as "cuda" would: nothing may follow it unasked
    try:
        fresh = priors.MODELS[name](**config)
        sample = model.sample(2, seed=1)
    finally:
        torch.set_default_device(None)
    assert fresh.like.device.type == sample.device.type == "cpu"
    x = 0.1 + 0.8 * rand(2, *model.shape, dtype=torch.float32)
    given = {"decode": z, "encode": x, "log_prob": x, "log_prob_latent": z, "elbo": x, "discriminate": x}
    methods = [(getattr(model, each), value) for each, value in given.items() if hasattr(model, each)]
    if isinstance(model, priors.Linear) and model.latent_dim != x[0].numel():
        methods = methods[:1]  # it has no inverse
    for method, value in methods:
        exact = method(value)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method(value)
        assert rounded.dtype == torch.float32 and torch.equal(rounded, exact), f"{method.__name__} follows autocast"


@pytest.mark.parametrize("name, config", CASES)
def test_arguments_alone_decide_the_weights_and_seeds_of_any_size_draw_others(name, config):
    def same(first, second):
        return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))

    model = priors.MODELS[name](**config)
    again = priors.MODELS[name](**config)
    assert same(model.state_dict(), again.state_dict()), f"{name} draws weights that its seed does not decide"
    if "seed" not in model.config:
        pytest.skip("draws nothing")
    first, second = (priors.MODELS[name](**config, seed=seed).state_dict() for seed in (0, 1764333333000000000))
    assert not same(first, second), f"the weights of {name} do not depend on its seed"
