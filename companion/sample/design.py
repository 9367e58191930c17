"""What to measure next: adaptive sensing and Bayesian optimisation with a posterior's draws (Ang 2021, Algorithms 2–4).

Both begin with no pixel measured, and work for any posterior that gives draws: of a generative prior's latents, or of a
Gaussian in closed form.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from companion import _support
from companion.energy import Energy, Generator, LatentNorm, NoiseMisfit, shaped
from companion.measure.linear import Mask
from companion.measure.noise import GaussianNoise
from companion.measure.problem import Problem
from companion.priors.linear import wide
from companion.recover.search import minimise
from companion.sample.metric import gauss_newton
from companion.sample.samplers import hmc

SENSING = ("conditional", "variance", "epsilon", "order")
OPTIMISATION = ("ucb", "thompson", "mean", "order")

Posterior = Callable[[Tensor, Tensor, int], Tensor]
"""(mask, y, round) → draws: boolean [images, *shape], measured values [images, m], → [draws, images, pixels].

The shape of what it returns is checked; draws before images, which nothing else can tell where the two are as many.
"""

Rule = Callable[[Tensor, Tensor], Tensor]
"""(drawn, taken) → scores of one image, once a round: draws [draws, pixels], boolean [pixels], → finite, [pixels].

The highest scores say which pixels are measured next, of those that are not `taken` yet.
"""


class LatentPosterior:
    """Draws of G(z) given pixels with N(0, std²) noise, by chains that go on from round to round.

    Each round searches from fresh draws of the prior too, keeps for each chain the better of its two places, and then
    samples with the Gauss–Newton metric at the best chain's place. Chains more than `worst` nats above the best one
    count as stuck, and the best one's draws stand in for theirs. With round 0 or 1 chains begin anew.

    Parameters
    ----------
    priors
        One generator, or several hypotheses, equally likely, each with chains of its own.
    std
        Of the noise, >= the noise that is there: the generator's own error belongs to it.
    """

    def __init__(
        self,
        priors: Generator | Sequence[Generator],
        std: float,
        *,
        chains: int = 4,
        search: int = 25,
        draws: int = 30,
        leapfrogs: int = 3,
        worst: float = 15.0,
        seed: int = 0,
    ) -> None:
        self.priors = list(priors) if isinstance(priors, Sequence) else [priors]
        self.std, self.worst = _support.positive("std", std), _support.positive("worst", worst)
        self.chains, self.search = _support.count("chains", chains), _support.count("search", search)
        self.draws, self.leapfrogs = _support.count("draws", draws), _support.count("leapfrogs", leapfrogs)
        self.seed, self.evaluations = _support.count("seed", seed, least=0), 0  # of all images and rounds
        self._places: list[Tensor | None] = [None] * len(self.priors)

    def __call__(self, mask: Tensor, y: Tensor, round_: int) -> Tensor:
        if round_ <= 1:  # another design begins, of other images perhaps: what the last one found is not for it
            self._places = [None] * len(self.priors)
        if not mask.any():
            found = [self._unconditional(prior, y, number) for number, prior in enumerate(self.priors)]
            return torch.cat([x.flatten(0, 1) for x in found])
        each = [self._chains(prior, mask, y, round_, number) for number, prior in enumerate(self.priors)]
        x, energy = (torch.cat(parts, axis) for parts, axis in zip(zip(*each, strict=True), (1, 0), strict=True))
        best = energy.argmin(0)
        numbers = torch.arange(len(energy), device="cpu")[:, None].to(best)
        chosen = torch.where(energy <= energy.amin(0) + self.worst, numbers, best)
        return x.gather(1, chosen[None, :, :, None].expand_as(x)).flatten(0, 1)

    def _latents(self, prior: Generator, y: Tensor, *stream: str | int) -> Tensor:
        """Draws of the prior's latents, [images, chains, n], a stream for each image."""
        shape = (self.chains, prior.latent_dim)
        return torch.stack([_support.normal(shape, self.seed, y, *stream, k) for k in range(len(y))])

    @torch.no_grad()
    def _unconditional(self, prior: Generator, y: Tensor, number: int) -> Tensor:
        latents = [self._latents(prior, y, "prior", number, draw).transpose(0, 1) for draw in range(self.draws)]
        return torch.stack([prior.decode(z.flatten(0, 1)).view(*z.shape[:2], -1) for z in latents])

    def _chains(self, prior: Generator, mask: Tensor, y: Tensor, round_: int, number: int) -> tuple[Tensor, Tensor]:
        """Draws [draws, chains, images, pixels], and mean energies, [chains, images]."""
        problem = Problem(Mask(mask), GaussianNoise(self.std))
        energy = Energy(prior, NoiseMisfit(problem, y), LatentNorm(0.5, squared=True))
        index = torch.arange(len(y), device=y.device).repeat_interleave(self.chains)
        rows = energy.select(index)
        z = self._latents(prior, y, "fresh", number, round_)
        searched = minimise(rows, z.flatten(0, 1), max_evaluations=self.search)
        z, value = searched.z, searched.energy
        if (warm := self._places[number]) is not None:
            with torch.no_grad():
                before = rows(warm.flatten(0, 1))
            better = before < value
            z, value = torch.where(better[:, None], warm.flatten(0, 1), z), torch.where(better, before, value)
        z, value = z.unflatten(0, (len(y), self.chains)), value.unflatten(0, (len(y), self.chains))
        metric = gauss_newton(energy, z[torch.arange(len(y), device=y.device), value.argmin(1)])
        stream = ("round", number, round_)
        options = {"draws": self.draws, "warmup": self.draws // 2, "metric": metric, "seed": self.seed}
        found = hmc(energy, z, leapfrogs=self.leapfrogs, step=0.5, stream=stream, **options)
        self._places[number] = found.last
        spent = self.search + int(found.evaluations.max())
        self.evaluations += len(y) * (self.chains * spent + metric.evaluations)
        return found.images(prior).flatten(3).transpose(1, 2), found.energies.mean(0).T


class GaussianPosterior:
    """Draws of N(mean, covariance), [pixels] and [pixels, pixels], given pixels with N(0, std²) noise: exact.

    By Matheron's rule: a draw of prior and noise, moved by the gain times what it measures wrongly.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, std: float, *, draws: int = 256, seed: int = 0) -> None:
        self.mean, self.covariance, self.std = mean, covariance, _support.positive("std", std)
        self.draws, self.seed = _support.count("draws", draws), _support.count("seed", seed, least=0)
        values, vectors = torch.linalg.eigh(wide(covariance))
        self.factor = (vectors * values.clamp(min=0).sqrt()).to(covariance)

    def __call__(self, mask: Tensor, y: Tensor, round_: int) -> Tensor:
        drawn = []
        for k, (seen, measured) in enumerate(zip(mask.flatten(1), y, strict=True)):
            source = _support.generator(self.seed, "gaussian", round_, k)
            x = self.mean + _support.normal((self.draws, len(self.mean)), source, y) @ self.factor.mT
            if seen.any():
                noisy = x[:, seen] + self.std * _support.normal((self.draws, len(measured)), source, y)
                inner = self.covariance[seen][:, seen] + self.std**2 * torch.eye(len(measured), device="cpu").to(y)
                x = x + torch.linalg.solve(inner, (measured - noisy).mT).mT @ self.covariance[seen]
            drawn.append(x)
        return torch.stack(drawn, 1)


@dataclass(frozen=True)
class Design:
    """What was measured, and what was thought after each round.

    Attributes
    ----------
    places : Tensor
        Pixels in the order measured, [images, rounds · pixels], as positions in the flattened image.
    estimates : Tensor
        Posterior means after each round, [rounds, images, *shape]; none for an optimisation.
    regret : Tensor
        Largest true value less the largest measured so far (without noise), [rounds, images].
    """

    places: Tensor
    estimates: Tensor
    regret: Tensor


def greedy(covariance: Tensor, number: int, std: float, taken: Tensor | None = None) -> Tensor:
    """Pixels one by one, each with the largest variance given those before: [number] of a covariance [pixels, pixels].

    Each is measured with N(0, std²) noise (pivoted Cholesky factorisation; Krause et al. 2008, sec. 4). The best fixed
    design, of a training set's covariance; or the next pixels, of posterior draws'. `taken` are booleans, [pixels]:
    pixels not to choose; ValueError where fewer than `number` are left.
    """
    std = _support.positive("std", std, zero=True)
    left, chosen = covariance.clone(), []
    open_ = torch.ones(len(left), dtype=torch.bool, device=left.device) if taken is None else ~taken
    if (number := _support.count("number", number)) > (most := int(open_.sum())):
        raise ValueError(f"number: got {number}; allowed: at most the {most} pixels that may be chosen")
    for _ in range(number):
        best = int(torch.where(open_, left.diagonal(), -torch.inf).argmax())
        chosen.append(best)
        open_ = open_.clone()
        open_[best] = False
        left -= torch.outer(left[:, best], left[best]) / (left[best, best] + std**2)
    return torch.tensor(chosen, device=left.device)


def adaptive_sensing(
    truth: Tensor,
    posterior: Posterior,
    rule: str | Rule = "conditional",
    *,
    rounds: int = 20,
    pixels: int = 5,
    std: float = 0.1,
    epsilon: float = 0.5,
    order: Tensor | None = None,
    seed: int = 0,
) -> Design:
    """Measure so many pixels a round where the posterior's draws differ most (Ang 2021, Algorithm 2).

    Parameters
    ----------
    truth
        Images [images, *shape], from which pixels are measured with N(0, std²) noise: the same for every rule.
    posterior
        Draws given what has been measured, such as :class:`LatentPosterior`.
    rule
        "variance": the pixels of largest variance, as published, neighbours of each other mostly. "conditional":
        :func:`greedy` of the draws' covariance. "epsilon": each round random pixels with probability `epsilon`, else
        "variance". "order": those of `order`, [pixels] or [images, pixels], first to last: fixed and random designs.
        Or a function of an image's draws and taken pixels that gives scores: a :data:`Rule`.

    No pixel is measured twice: ValueError for more rounds than there are pixels for, and for an `order` that is too
    short, repeats itself or belongs to another rule; for draws and scores of another shape than they should have.
    """
    if not callable(rule):
        _support.one_of("rule", rule, SENSING)
    epsilon = _support.number("epsilon", epsilon, "a number from 0 to 1", lambda v: 0 <= v <= 1)

    def choose(drawn: Tensor, taken: Tensor, image: int, round_: int) -> Tensor:
        source = _support.generator(seed, "epsilon", image, round_)
        if rule == "epsilon" and float(torch.rand(1, generator=source, device="cpu")) < epsilon:
            score = torch.rand(len(taken), generator=source, device="cpu").to(drawn)
        elif rule == "conditional":
            return greedy(torch.cov(drawn.mT), pixels, std, taken)
        elif callable(rule):
            score = _scores(rule, drawn, taken)
        else:
            score = drawn.var(0)
        return torch.where(taken, -torch.inf, score).topk(pixels).indices

    return _measure(truth, posterior, choose, rounds, pixels, std, _checked(rule, order), seed, True)


def bayesian_optimisation(
    truth: Tensor,
    posterior: Posterior | None,
    rule: str | Rule = "ucb",
    *,
    rounds: int = 20,
    std: float = 0.05,
    kappa: float = 2.0,
    order: Tensor | None = None,
    seed: int = 0,
) -> Design:
    """Look for an image's brightest pixel, one measured a round (Ang 2021, Algorithms 3 and 4).

    `rule`: "ucb", mean + `kappa` standard deviations of the draws; "thompson", one draw; "mean", which Ang's Algorithm
    3 takes for a draw; "order", the pixels of `order`, here with repetitions too; or a :data:`Rule`. The other
    parameters are those of :func:`adaptive_sensing`.
    """
    if not callable(rule):
        _support.one_of("rule", rule, OPTIMISATION)
    kappa = _support.number("kappa", kappa)

    def choose(drawn: Tensor, taken: Tensor, image: int, round_: int) -> Tensor:
        if rule == "thompson":
            source = _support.generator(seed, "thompson", image, round_)
            score = drawn[int(torch.randint(len(drawn), (1,), generator=source, device="cpu"))]
        elif callable(rule):
            score = _scores(rule, drawn, taken)
        else:
            score = drawn.mean(0) + (kappa * drawn.std(0) if rule == "ucb" else 0.0)
        return torch.where(taken, -torch.inf, score).topk(1).indices

    return _measure(truth, posterior, choose, rounds, 1, std, _checked(rule, order), seed, False)


def _scores(rule: Rule, drawn: Tensor, taken: Tensor) -> Tensor:
    return _support.finite("rule", shaped("rule", rule(drawn, taken), taken.shape))


def _checked(rule: str | Rule, order: Tensor | None) -> Tensor | None:
    """The order, if the rule asks for one and it is of whole numbers."""
    if (order is None) == (rule != "order") and (order is None or getattr(order, "dtype", None) == torch.long):
        return order
    given = f"{order.dtype} tensor" if isinstance(order, Tensor) else type(order).__name__
    raise ValueError(f"order: got {given} for rule {rule!r}; allowed: a tensor of whole numbers for 'order', else None")


def _measure(
    truth: Tensor,
    posterior: Posterior | None,
    choose: Callable[[Tensor, Tensor, int, int], Tensor],
    rounds: int,
    pixels: int,
    std: float,
    order: Tensor | None,
    seed: int,
    estimate: bool,
) -> Design:
    """Rounds of choosing, measuring and drawing; with an `order`, no draws are needed to choose."""
    images, flat = len(truth), truth.flatten(1)
    rounds, pixels = _support.count("rounds", rounds), _support.count("pixels", pixels)
    noise = [_support.normal(flat.shape[1:], seed, truth, "measurement", k) for k in range(images)]
    noisy = flat + _support.positive("std", std) * torch.stack(noise)
    if (number := rounds * pixels) > flat.shape[1] and (estimate or order is None):
        raise ValueError(f"rounds: got {rounds} of {pixels} pixels; allowed: at most {flat.shape[1]} pixels in all")
    if order is not None:
        try:
            order = order.to(truth.device).expand(images, -1)[:, :number]
        except RuntimeError:
            raise ValueError(f"order: got {tuple(order.shape)}; allowed: [pixels] or [{images}, pixels]") from None
        twice = estimate and bool((order.sort(1).values.diff() == 0).any())  # a posterior is given a value only once
        if order.shape[1] < number or order.min() < 0 or order.max() >= flat.shape[1] or twice:
            allowed = f"{number} pixels or more, from 0 to {flat.shape[1] - 1}, none twice"
            raise ValueError(f"order: got {order.tolist()}; allowed: {allowed}")
    taken = torch.zeros_like(flat, dtype=torch.bool)
    places, estimates, regret = [], [], []
    drawn: Tensor | None = None
    for round_ in range(rounds):
        if order is not None:
            new = order[:, round_ * pixels : (round_ + 1) * pixels]
        else:
            drawn = _draw(posterior, taken, noisy, truth, round_) if drawn is None else drawn
            new = torch.stack([choose(drawn[:, k], taken[k], k, round_) for k in range(images)])
        taken = taken.scatter(1, new, True)
        places.append(new)
        regret.append(flat.amax(1) - torch.where(taken, flat, -torch.inf).amax(1))
        if estimate or order is None:
            drawn = _draw(posterior, taken, noisy, truth, round_ + 1)
            estimates.append(drawn.mean(0).view_as(truth))
    means = torch.stack(estimates) if estimate else truth[None, :0].expand(0, -1, *truth.shape[1:])
    return Design(torch.cat(places, 1), means, torch.stack(regret))


def _draw(posterior: Posterior | None, taken: Tensor, noisy: Tensor, truth: Tensor, round_: int) -> Tensor:
    if posterior is None:
        raise ValueError("posterior: got None; allowed: a posterior, for every rule but 'order'")
    y = noisy[taken].view(len(noisy), -1)
    drawn = posterior(taken.view_as(truth), y, round_)
    return shaped("posterior", drawn, (max(1, len(drawn)), *taken.shape))
