"""Estimates from measurements: minimisers of energies, the papers' estimators on top, and classical baselines."""

from companion.recover.bm3d import bm3d
from companion.recover.estimators import flow_image, flow_latent, flow_map, gan_latent
from companion.recover.gaussian import gaussian_map
from companion.recover.lasso import lasso
from companion.recover.linear import pseudo_inverse
from companion.recover.minimise import METHODS, minimise
from companion.recover.plug_and_play import plug_and_play
from companion.recover.run import Result
from companion.recover.start import null_space_neighbour, start
from companion.recover.tv import tv
