"""Estimates from measurements: minimisers of energies, the papers' estimators on top, and classical baselines."""

from companion.recover.block_matching import bm3d
from companion.recover.denoisers import plug_and_play
from companion.recover.estimators import flow_image, flow_latent, flow_map, gan_latent
from companion.recover.gaussian import gaussian_map
from companion.recover.linear import pseudo_inverse
from companion.recover.run import Result
from companion.recover.search import METHODS, minimise
from companion.recover.sparse import lasso
from companion.recover.starts import null_space_neighbour, start
from companion.recover.total_variation import tv
