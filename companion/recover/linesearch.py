"""Line search to the strong Wolfe conditions, for one image: it is told values and says where to look next."""

import math
from dataclasses import dataclass, field


@dataclass
class Trial:
    """Energy and slope at a step along the search direction."""

    step: float
    value: float
    slope: float


@dataclass
class StrongWolfe:
    """Bracketing and zoom (Nocedal & Wright 2006, algorithms 3.5 and 3.6) turned inside out.

    The caller evaluates the energy at `step` and reports it, until `done`. Many searches can so share every
    evaluation of a batch, each at its own step and its own stage. A value or slope that is not finite counts as "too
    far".
    """

    value: float  # energy and
    slope: float  # directional derivative (< 0) at step 0
    step: float  # the one to try
    # Energies up to here count as low enough: the least energy so far, plus what rounding can add to it. A search near
    # the minimum is so led by the slopes, which stay accurate, and not by noise.
    ceiling: float = -math.inf
    resolution: float = 0.0  # change of the energy that rounding hides: a bracket that promises no more ends the search
    decrease: float = 1e-4  # c₁ and
    curvature: float = 0.9  # c₂ of the two conditions
    most: int = 20  # evaluations after which the search ends with the best step found
    low: Trial = field(init=False)  # best step so far; step 0 until one satisfies the first condition
    high: Trial | None = field(init=False, default=None)
    improved: bool = field(init=False, default=False)  # whether the trial just reported became `low`
    promise: float = field(init=False)  # decrease that the slope promises for the first step
    done: bool = field(init=False, default=False)  # with success if ``low.step > 0``
    tried: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.low = Trial(0.0, self.value, self.slope)
        self.promise = -self.slope * self.step

    def report(self, value: float, slope: float) -> None:
        """Take note of energy and slope at `step`, and choose the next step."""
        trial, before = Trial(self.step, value, slope), self.low
        self.tried += 1
        self.improved = not self._too_far(trial)
        if not self.improved:
            self.high = trial
        else:
            self.low = trial
            if abs(slope) <= -self.curvature * self.slope:
                self.done = True
                return
            if self.high is None:
                self.high = before if slope > 0 else None
            elif slope * (self.high.step - trial.step) > 0:
                self.high = before
        self.step = self._extrapolate(before) if self.high is None else self._interpolate(self.high)
        self.done = self.tried >= self.most or self._stalled()

    def _stalled(self) -> bool:
        """Whether the bracket is too narrow to promise a visible decrease."""
        if self.high is None:
            return False
        width = abs(self.high.step - self.low.step)
        return width * abs(self.low.slope) <= self.resolution or width <= 1e-14 * max(self.high.step, self.low.step)

    def _too_far(self, trial: Trial) -> bool:
        if not (math.isfinite(trial.value) and math.isfinite(trial.slope)):
            return True
        if trial.value <= self.ceiling:
            return False
        if trial.value > self.value + self.decrease * trial.step * self.slope:
            return True
        return self.low.step > 0 and trial.value > self.low.value

    def _extrapolate(self, before: Trial) -> float:
        """A step 2 to 10 times as long as the last."""
        longest, shortest = 10 * self.low.step, 2 * self.low.step
        guess = _cubic_minimum(before, self.low)
        return longest if guess is None or guess < self.low.step else min(max(guess, shortest), longest)

    def _interpolate(self, high: Trial) -> float:
        """A step between the ends of the bracket, away from both."""
        low, width = self.low.step, high.step - self.low.step
        if not (math.isfinite(high.value) and math.isfinite(high.slope)):
            return low + 0.2 * width
        guess = _cubic_minimum(self.low, high)
        if guess is None:
            return low + 0.5 * width
        nearest, farthest = sorted((low + 0.1 * width, high.step - 0.1 * width))
        return min(max(guess, nearest), farthest)


def _cubic_minimum(a: Trial, b: Trial) -> float | None:
    """Minimiser of the cubic through the values and slopes of two trials (Nocedal & Wright 2006, eq. 3.59), if any."""
    if a.step == b.step:
        return None
    first = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = first * first - a.slope * b.slope
    if not math.isfinite(square) or square < 0:
        return None
    second = math.copysign(math.sqrt(square), b.step - a.step)
    below = b.slope - a.slope + 2 * second
    return b.step - (b.step - a.step) * (b.slope + second - first) / below if below else None
