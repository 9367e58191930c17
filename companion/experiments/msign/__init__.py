"""Zhang et al. 2021, "Multiscale invertible generative networks": Bayesian inverse problems on random fields."""
