"""Energies: the one place where a method's objective is written down.

An energy is a weighted sum of terms: misfits, how badly an image explains the measurements, and penalties, how unlikely
the prior finds it:

- Asim et al. 2020, eq. 2: ``Energy(flow, SquaredMisfit(A, y), LatentNorm(gamma))``
- Asim et al. 2020, eq. 1: ``Energy(flow, SquaredMisfit(A, y), FlowLikelihood(gamma), space="x")``
- Bora et al. 2017, eq. 4: ``Energy(gan, SquaredMisfit(A, y), LatentNorm(gamma, squared=True))``
- Whang et al. 2020, eq. 12: ``Energy(flow, NoiseMisfit(problem, y), FlowLikelihood(beta))``
- Ang 2021, sec. 3.2: ``Energy(gan, terms=[(1, misfit), (1, LatentNorm(0.5, squared=True)), (1, Discrimination(r))])``
- one bit a measurement: ``Energy(flow, ProbitMisfit(problem, y), FlowLikelihood(beta))``

The protocol, that solvers and samplers work with, is :class:`Objective`: ``value_and_gradient`` of a batch, and
``select(index)``, the same for the images at `index` only. What has data for each image gives ``select``: operators,
noises and problems (:mod:`companion.measure`), misfits, penalties and energies; for what has none it is the object
itself. An index may repeat an image, and is a list or a tensor of whole numbers.

Each returns one value per image, [batch], that depends on no other image, up to rounding.
"""

from companion.energy.discriminator import Discrimination, LogRatio
from companion.energy.objective import Energy, Function, Objective
from companion.energy.one_bit import PerceptronMisfit, ProbitMisfit, linearised
from companion.energy.points import Density, Generator, ImagePoint, LatentPoint, Point
from companion.energy.terms import FlowLikelihood, LatentNorm, Misfit, NoiseMisfit, Penalty, SquaredMisfit, shaped
