"""What samplers return: draws, their diagnostics, and the estimates made of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion import _support
from companion.energy import Generator
from companion.priors.linear import wide
from companion.sample.score import tweedie

RHAT, ESS = 1.05, 100.0  # beyond the one, or below the other, an image's chains have not converged


@dataclass(frozen=True)
class Diagnostics:
    """Convergence of the chains of each image; the last quantity is always the energy.

    Attributes
    ----------
    rhat : np.ndarray
        Rank-normalised split R-hat (Vehtari et al. 2021), [image, quantity]: how much wider all chains together are
        than each alone, 1 where they agree. Chains that all start in one mode agree without having seen another.
    ess_bulk, ess_tail : np.ndarray
        Effective sample sizes of all chains together, for the mean and for 5 % tails, [image, quantity].
    spread : np.ndarray
        Largest difference of two chains' mean energies in nats, [image]: a chain far above the others is stuck.
    accept_rate : np.ndarray
        [image, chain].
    failed : np.ndarray
        Proposals that were not finite, [image, chain].
    converged : np.ndarray
        Boolean, [image]: every R-hat <= 1.05 and every effective sample size >= 100.
    """

    rhat: np.ndarray
    ess_bulk: np.ndarray
    ess_tail: np.ndarray
    spread: np.ndarray
    accept_rate: np.ndarray
    failed: np.ndarray
    converged: np.ndarray

    def __str__(self) -> str:
        """One line for each image."""
        return "\n".join(self.line(image) for image in range(len(self.rhat)))

    def line(self, image: int) -> str:
        """What to think of the chains of an image."""
        rhat, ess = self.rhat[image].max(), min(self.ess_bulk[image].min(), self.ess_tail[image].min())
        verdict = "converged" if self.converged[image] else "has not converged"
        accepted = self.accept_rate[image].mean()
        text = f"image {image}: {verdict} (R-hat {rhat:.3f}, ESS {ess:.0f}, acceptance {accepted:.2f}"
        refused = int(self.failed[image].sum())
        return text + (f", {refused} proposals not finite)" if refused else ")")


@dataclass(frozen=True)
class Chains:
    """Draws of Markov chains.

    Attributes
    ----------
    samples : Tensor
        [draw, image, chain, *variable shape].
    energies : Tensor
        Of the samples, [draw, image, chain].
    accept_rate : Tensor
        Mean probability of acceptance after the warm-up, [image, chain].
    failed : Tensor
        Proposals refused because something of them was not finite, [image, chain].
    step : Tensor
        Step sizes after the warm-up, [image].
    evaluations : Tensor
        Evaluations of the energy that each chain cost, warm-up and start included, [image, chain].
    """

    samples: Tensor
    energies: Tensor
    accept_rate: Tensor
    failed: Tensor
    step: Tensor
    evaluations: Tensor

    @property
    def last(self) -> Tensor:
        """Where the chains stand, [image, chain, *variable shape]: the start of more."""
        return self.samples[-1]

    def diagnostics(self, of: Callable[[Tensor], Tensor] | None = None) -> Diagnostics:
        """Diagnostics of the variable's coordinates and the energy; or of(variable), [rows, quantities], for them.

        One chain alone is taken for two, its halves, by R-hat. ValueError for fewer than 4 draws, or 8 of one chain.
        """
        from arviz_stats.base import array_stats  # costs half a second

        draws, images, chains = self.energies.shape
        if draws < (least := 4 if chains > 1 else 8):
            raise ValueError(f"draws: got {draws}; allowed: at least {least} for diagnostics")
        values = self.samples.flatten(0, 2) if of is None else of(self.samples.flatten(0, 2))
        values = torch.cat([wide(values.flatten(1)), wide(self.energies.reshape(-1, 1))], 1)
        series = values.view(draws, images, chains, -1).permute(1, 3, 2, 0).cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):  # a chain that never moved has no variance
            halves = series[..., : draws // 2 * 2].reshape(*series.shape[:2], 2, -1) if chains == 1 else series
            rhat = np.nan_to_num(array_stats.rhat(halves), nan=np.inf)
            bulk = np.nan_to_num(array_stats.ess(series, method="bulk"), nan=1.0)
            tail = np.nan_to_num(array_stats.ess(series, method="tail", prob=(0.05, 0.95)), nan=1.0)
        mean = self.energies.mean(0)
        return Diagnostics(
            rhat=rhat,
            ess_bulk=bulk,
            ess_tail=tail,
            spread=(mean.amax(1) - mean.amin(1)).cpu().numpy(),
            accept_rate=self.accept_rate.cpu().numpy(),
            failed=self.failed.cpu().numpy(),
            converged=(rhat <= RHAT).all(1) & (bulk >= ESS).all(1) & (tail >= ESS).all(1),
        )

    @torch.no_grad()
    def images(self, prior: Generator, rows: int = 1024) -> Tensor:
        """Images G(z) of samples that are latents, [draw, image, chain, *shape]; so many decoded at a time."""
        latents = self.samples.flatten(0, 2).split(rows)
        return torch.cat([prior.decode(z) for z in latents]).view(*self.energies.shape, *prior.shape)

    def estimate(self, prior: Generator, how: str = "mean", std: float | None = None) -> Tensor:
        """An image for each problem, [image, *shape]: "mean" of all draws and chains, or the "last" draws' mean.

        With `std`, a flow's estimate is denoised by :func:`tweedie` (Ang 2021, Algorithm 1, "denoise").
        """
        _support.one_of("how", how, ("mean", "last"))
        drawn = self.images(prior)
        x = drawn.mean((0, 2)) if how == "mean" else drawn[-1].mean(1)
        return x if std is None else tweedie(prior, x, std)


def mixing_time(energies: Tensor, mean: Tensor, spread: Tensor, window: int = 20) -> Tensor:
    """Steps until the mean of `window` energies is within `spread` of equilibrium's `mean`: the last of them, [image].

    Energies are those of one chain, [draw, image]; mean and standard deviation of the posterior's, [image], come from
    chains that have converged. As many as there are where it never is. This is when a chain arrives at the energies of
    equilibrium; it may do so in a mode of little weight, and long before it has seen all that lies there.
    """
    window = _support.count("window", window)
    if energies.dim() != 2 or len(energies) < window or not energies.shape[1:] == mean.shape == spread.shape:
        given = ", ".join(str(tuple(one.shape)) for one in (energies, mean, spread))
        allowed = f"[draw, image] of at least {window} draws, [image], [image]"
        raise ValueError(f"energies, mean, spread: got {given}; allowed: {allowed}")
    means = energies.unfold(0, window, 1).mean(2)
    there = (means - mean).abs() <= spread
    first = there.int().argmax(0) + window
    return torch.where(there.any(0), first, len(energies))


def autocorrelation_time(series: np.ndarray) -> np.ndarray:
    """Integrated autocorrelation time 1 + 2 Σ ρ_k in draws, [image, quantity], of chains [draw, image, quantity].

    Draws over effective draws (ArviZ, which compares the chain's halves, too); a chain shorter than some tens of it
    gives too little, as does one that moved once or twice; one that never moved gives its length, and one that is not
    finite NaN. Times a draw's evaluations it is the price of a draw that is worth an independent one.

    ValueError for fewer than 4 draws.
    """
    values = np.asarray(series, dtype=float)
    if values.ndim != 3 or len(values) < 4:
        raise ValueError(f"series: got shape {values.shape}; allowed: [draw, image, quantity] of at least 4 draws")
    from arviz_stats.base import array_stats  # costs half a second

    with np.errstate(invalid="ignore"):
        width = np.ptp(values, 0)
        width[~np.isfinite(width)] = np.nan
        values = (values - values[0]) / np.where(width > 0, width, 1.0)  # ArviZ takes tiny differences for none
        effective = array_stats.ess(np.nan_to_num(values).transpose(1, 2, 0)[:, :, None], method="mean")
    return len(values) / np.where(width > 0, effective, np.where(np.isnan(width), np.nan, 1.0))
