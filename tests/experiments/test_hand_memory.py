"""The memory of backpropagation: what is counted is what a graph keeps, and rebuilding keeps no more in depth."""

import pytest
import torch
from torch import nn

from companion import experiments
from companion.experiments.hand.memory import kept_bytes


def test_kept_bytes_counts_each_storage_of_the_graph_once():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x.exp()  # keeps its result, 8 kB
        return (y * y).sum()  # keeps y twice: the same storage

    assert kept_bytes(forward, nn.Module()) == 8000


def test_weights_are_not_counted():
    layer = nn.Linear(100, 100, bias=False)
    x = torch.ones(1, 100)
    assert kept_bytes(lambda: layer(x).sum(), layer) == x.nbytes


@pytest.fixture(scope="module")
def quick():
    return experiments.load("hand.memory", "quick")  # test_verify.py asks whether today\'s code gives it


def test_ordinary_backpropagation_keeps_in_proportion_to_depth_and_rebuilding_the_same(quick):
    ordinary, rebuilt = (quick.take("kept", method=method) for method in ("ordinary", "rebuilt"))
    assert quick.axes("kept")["depth"] == [2, 4] and ordinary[1] / ordinary[0] > 1.6
    assert rebuilt[1] / rebuilt[0] < 1.1 and rebuilt[1] < ordinary[1] / 4
    assert (quick.take("peak") > 0).all()


def test_rebuilding_changes_no_gradient(quick):
    assert quick.take("gradient error").max() < 1e-4
