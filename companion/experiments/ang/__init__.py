"""Ang 2021, posterior sampling with generative models as priors: one module for each group of its figures."""
