"""Asim et al. 2020, *Invertible generative models for inverse problems*: one module for each group of its figures."""
