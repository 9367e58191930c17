"""Adam for a batch of independent problems."""

import torch
from torch import Tensor

from companion.recover.objective import Evaluation, Objective, Outcome, Recorder, Stopping


def adam(
    objective: Objective,
    start: Tensor,
    first: Evaluation,
    recorder: Recorder,
    stopping: Stopping,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> Outcome:
    """Minimise with Adam (Kingma & Ba 2015, algorithm 1), keeping each image's best iterate.

    An image that meets an energy or gradient that is not finite stops there.
    """
    outcome = Outcome.at_start(start, first)
    variable, gradient = start.clone(), first.gradient.clone()
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    rows = [row for row, value in enumerate(first.value) if value < float("inf")]
    rows = _go_on(rows, gradient[rows], outcome, objective, recorder, stopping)
    iteration = 0
    while rows:
        iteration += 1
        index = torch.tensor(rows, dtype=torch.long, device=start.device)
        now = gradient[index]
        mean[index] = betas[0] * mean[index] + (1 - betas[0]) * now
        square[index] = betas[1] * square[index] + (1 - betas[1]) * now.square()
        corrected = mean[index] / (1 - betas[0] ** iteration)
        spread = (square[index] / (1 - betas[1] ** iteration)).sqrt() + epsilon
        variable[index] = variable[index] - learning_rate * corrected / spread
        result = objective(variable[index], rows)
        gradient[index] = result.gradient
        recorder.note(rows, result.value, objective, result.seen)
        better = [k for k, row in enumerate(rows) if result.value[k] < outcome.value[row]]
        outcome.variable[index[better]] = variable[index[better]]
        for k in better:
            outcome.value[rows[k]] = result.value[k]
        for row, value in zip(rows, result.value, strict=True):
            if value == float("inf"):
                outcome.close(row, (False, f"energy or gradient not finite at iteration {iteration}"))
        alive = [k for k, value in enumerate(result.value) if value < float("inf")]
        rows = _go_on([rows[k] for k in alive], result.gradient[alive], outcome, objective, recorder, stopping)
    return outcome


def _go_on(
    rows: list[int], gradient: Tensor, outcome: Outcome, objective: Objective, recorder: Recorder, stopping: Stopping
) -> list[int]:
    """The images that go on, after the verdict on the others is written down."""
    going = []
    for row, largest in zip(rows, gradient.abs().amax(1).tolist() if rows else [], strict=True):
        verdict = stopping.verdict(
            row, outcome.value[row], largest, recorder.iterations(row), objective.evaluations[row]
        )
        if verdict is None:
            going.append(row)
        else:
            outcome.close(row, verdict)
    return going
