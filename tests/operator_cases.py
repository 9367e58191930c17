"""Operators for the tests of several folders."""

from companion import measure


class Masks(measure.base.LinearOperator):
    """A mask of its own for every image."""

    def __init__(self, masks):
        super().__init__(masks.shape[1:], masks.shape[1:])
        self.masks = masks

    def apply(self, x):
        return self.masks * x

    apply_adjoint = apply

    def select(self, index):
        return Masks(self.masks[index])
