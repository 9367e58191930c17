"""Random numbers of the package come from named streams alone: its sources are read for others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "companion"
SEEDING = {"manual_seed", "manual_seed_all", "default_rng", "RandomState", "SeedSequence", "seed"}
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "bernoulli", "multinomial", "poisson"}


def unnamed_streams(source: str) -> Iterator[tuple[int, str]]:
    """Line and code of each place that seeds by itself, reckons with a seed, or draws without a generator."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            own = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in ("torch", "Tensor")
            drawn = own and name in DRAWS and not any(each.arg == "generator" for each in node.keywords)
            state = any(each.arg == "random_state" for each in node.keywords)
            if name in SEEDING or drawn or state or ast.unparse(node.func).startswith("np.random."):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Import) and any(each.name == "random" for each in node.names):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.BinOp | ast.AugAssign):
            sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
            if not isinstance(node.op, ast.BitOr) and any(ast.unparse(s).endswith("seed") for s in sides):
                yield node.lineno, ast.unparse(node)


def test_the_package_draws_from_named_streams_alone() -> None:
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "_support.py"]  # which makes them
    found = [
        f"{file.relative_to(PACKAGE.parent)}:{line}: {code}"
        for file in files
        for line, code in unnamed_streams(file.read_text(encoding="utf-8"))
    ]
    assert not found, "use _support.generator(seed, name, ...) or _support.normal: " + "; ".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "draw = torch.Generator().manual_seed(seed)",
        "draw = np.random.default_rng(seed)",
        "torch.manual_seed(0)",
        "draw = default_rng(0)",
        "make(seed=seed + 1)",
        "make(seed=settings.seed + k)",
        "seed += 1",
        "make(2 * seed)",
        "np.random.normal(size=3)",
        "import random",
        "x = torch.randn(3, dtype=dtype)",
        "KMeans(3, random_state=seed)",
    ],
)
def test_an_unnamed_stream_is_found_with_its_line(line: str) -> None:
    assert [found for found, _ in unnamed_streams(f"import torch\n\n{line}\n")] == [3]


@pytest.mark.parametrize(
    "line",
    [
        'draw = _support.generator(seed, "noise", k)',
        "x = torch.randn(3, generator=draw)",
        "def f(seed: int | torch.Generator = 0): return g(seed)",
    ],
)
def test_a_named_stream_is_left_alone(line: str) -> None:
    assert not list(unnamed_streams(line))
