"""The lecture notes of P. Hand, *Invertible neural networks and inverse problems*: one module for each claim."""
