"""What every prior offers: images from latents, z ~ N(0, I), flat."""

import functools
import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from companion import _support

Value = TypeVar("Value")
DTYPES = (torch.float32, torch.float64)  # in which priors compute
ROWS = 1024  # images that `sample` decodes at a time: what a flow keeps of many more would not fit into memory
MODELS: dict[str, type["Prior"]] = {}  # what checkpoints can hold, by name


class Prior(nn.Module, ABC):
    """A generator G of images from flat latents z ~ N(0, I)."""

    shape: tuple[int, ...]  # of one image, (channels, height, width); (2,) for planar points
    latent_dim: int  # length of the flat latent vector
    config: dict[str, Any]  # the arguments that build this prior again, noted when it was built
    card: dict[str, Any]  # what is known of a loaded prior: data, licence, budget, scores
    _among_weights: tuple[str, ...] = ()  # arguments whose values are buffers, so that `config` has their shapes alone

    def __init_subclass__(cls, stored: bool = True, **options: Any) -> None:
        """Let constructions note their arguments in `config`, and let checkpoints hold the models of this package.

        ``stored=False``: for classes whose arguments no checkpoint can hold.
        """
        super().__init_subclass__(**options)
        if stored and "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]
        if stored and cls.__module__.startswith(__package__):
            MODELS[cls.__name__] = cls

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Images x = G(z), [batch, *shape], from latents z, [batch, latent_dim]."""

    @property
    def like(self) -> Tensor:
        """A tensor of the prior, whose dtype and device are those of the prior."""
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0, device="cpu"))

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, seed: int | torch.Generator = 0) -> Tensor:
        """Draw `n` images G(temperature · z) with z ~ N(0, I); [n, *shape]. The values are not clipped to [0, 1]."""
        _support.count("n", n)
        _support.positive("temperature", temperature, zero=True)
        z = temperature * _support.normal((n, self.latent_dim), seed, self.like, "sample")
        return torch.cat([self.decode(part) for part in z.split(ROWS)])

    def _check_latent(self, z: Tensor) -> Tensor:
        return self._check_dtype("z", _support.batch_of("z", z, (self.latent_dim,)))

    def _check_image(self, x: Tensor) -> Tensor:
        x = self._check_dtype("x", _support.batch_of("x", x, self.shape))
        return x if transforming() else _support.finite("x", x)

    def _check_dtype(self, name: str, value: Tensor) -> Tensor:
        if self.like.dtype not in DTYPES:
            raise ValueError(f"prior: got weights in {self.like.dtype}; allowed: torch.float32 or torch.float64")
        if value.dtype != self.like.dtype or value.device != self.like.device:
            raise ValueError(
                f"{name}: got {value.dtype} on {value.device}; allowed: {self.like.dtype} on {self.like.device}, "
                "as the prior (move either with .to(...))"
            )
        return value


def transforming() -> bool:
    """Whether torch.func or forward-mode differentiation is at work.

    Then any tensor may carry a derivative or stand for many, and has neither values to look at nor a memory layout.
    """
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class Kept:
    """The last value computed from some tensors, until they change.

    They are compared by value, so that no way of changing them leaves what is kept stale. Copies begin empty.
    """

    def __init__(self) -> None:
        self._last: tuple[list[Tensor], Any] | None = None

    def __call__(self, tensors: Sequence[Tensor], make: Callable[[], Value]) -> Value:
        """What `make` gives for `tensors`, which are all that it depends on; nothing is differentiated."""
        last = self._last
        if last is None or not all(map(_equal, tensors, last[0])):
            with torch.inference_mode(False), torch.no_grad():
                self._last = last = [t.clone() for t in tensors], make()
        return last[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_last": None}


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and one.equal(other)


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor on the CPU that notes its arguments, defaults included, in `config` before it acts."""
    signature = inspect.signature(init)
    others = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    @functools.wraps(init)
    def recorded(self: Prior, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        _, *named = given.arguments.items()
        named = [pair for pair in named if pair[0] != others] + list(given.arguments.get(others, {}).items())
        config = {name: _shape(value) if name in self._among_weights else _plain(value) for name, value in named}
        vars(self).setdefault("config", config)  # a subclass came first
        with torch.device("cpu"):  # where the random numbers are drawn, whatever the default device is
            init(self, *args, **kwargs)
        whole = inspect.unwrap(init) is inspect.unwrap(type(self).__init__)  # not that of a class below
        if whole and MODELS.get(type(self).__name__) is type(self):
            check_storable(self)  # before it is trained

    return recorded


def check_storable(prior: Prior) -> None:
    """ValueError where a checkpoint would not give the arguments of a prior back."""

    def holds(value: Any) -> bool:
        return value is None or isinstance(value, int | float | str) or (type(value) is list and all(map(holds, value)))

    for name, value in prior.config.items():
        if name not in prior._among_weights and not holds(value):
            allowed = "what a checkpoint holds: numbers, text, None, and tuples of these"
            raise ValueError(f"{name}: got {type(value).__name__} for a {type(prior).__name__}; allowed: {allowed}")


def _plain(value: Any) -> Any:
    """An argument as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def _shape(value: Any) -> Any:
    return {"tensor": list(value.shape)} if isinstance(value, Tensor) else value


def standard_normal_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I) of each row of z, [batch]."""
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
