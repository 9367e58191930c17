"""Adam for a batch of independent problems."""

import torch

from companion.recover.descent import Descent


def adam(
    descent: Descent, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> None:
    """Minimise with Adam (Kingma & Ba 2015, algorithm 1), each image to its own end.

    Its ε counts gradients in each image's own unit (:class:`Descent`).
    """
    variable, gradient = descent.start, descent.gradient
    mean, square = torch.zeros_like(variable), torch.zeros_like(variable)
    iteration = 0
    while len(variable):
        iteration += 1
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient.square()
        spread = (square / (1 - betas[1] ** iteration)).sqrt() + epsilon
        variable = variable - learning_rate / (1 - betas[0] ** iteration) * mean / spread
        value, gradient, seen = descent.evaluate(variable)
        descent.run.spend()
        keep = descent.advance(variable, value, gradient, seen)
        if keep is not None:
            variable, gradient, mean, square = (t[keep] for t in (variable, gradient, mean, square))
