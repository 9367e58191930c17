"""The page on extending the package: its blocks run in their order, as a reader would run them."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion import priors
from companion.experiments import registry

PAGE = Path(__file__).parents[2] / "book" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with pictures to run in; what the page registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    before = dict(priors.MODELS)
    (tmp_path / "pictures").mkdir()
    source = np.random.default_rng(0)
    for k in range(5):
        Image.fromarray(source.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{k}.png")
    yield tmp_path
    priors.MODELS.clear()
    priors.MODELS.update(before)
    sys.modules.pop("my_experiment", None)


@pytest.mark.slow
def test_every_block_runs_after_those_before_it(folder, capsys):
    names = {"__name__": "extending"}
    for block in BLOCKS:
        if named := re.match(r"# (\w+\.py)\n", block):
            (folder / named[1]).write_text(block)
        else:
            exec(compile(block, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out
    assert "False" not in printed and printed.count("True") == 7
    assert "12 crops of 3 pictures" in printed and "torch.Size([1, 1, 8, 8])" in printed and "(4,)" in printed


def test_blocks_are_short():
    lines = [sum(map(bool, block.splitlines())) for block in BLOCKS]
    assert len(BLOCKS) > 8 and max(lines) <= 15
