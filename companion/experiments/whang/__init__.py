"""Whang et al. 2021: flow priors for dependent noise and measurements that are not linear."""
