import subprocess
import sys
import types
from functools import cache

import pytest

from companion.experiments import fingerprint

SOURCE = '''
"""A module."""
from companion import recover, evaluate as scores
from companion.energy import Energy


class Thing:
    """Does."""

    def method(self, x):
        """Does more."""
        if x:
            return x + 1  # one more
        return 0
'''


def same(source):
    return fingerprint.examine(source) == fingerprint.examine(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# one more", "# another comment"),
        ('"""Does more."""', '"""Does more.\n\n        At length.\n        """'),
        ('    """Does."""\n\n', ""),
        ("return 0", "return (\n            0\n        )"),
        ("if x:", "if (x):"),
        ("\n", "\r\n"),
        ("from companion.energy", "from typing import TYPE_CHECKING\nfrom companion.energy"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(old, new):
    changed = SOURCE.replace(old, new)
    assert changed != SOURCE
    assert same(changed) or "TYPE_CHECKING" in new  # an import is code


@pytest.mark.parametrize(("old", "new"), [("x + 1", "x + 2"), ("x + 1", "x - 1"), ("return 0", "return 0.0")])
def test_every_change_of_code_counts(old, new):
    assert not same(SOURCE.replace(old, new))


def test_imports_for_type_checkers_alone_do_not_count():
    guarded = SOURCE + "\nif TYPE_CHECKING:\n    from companion.show import theme\n"
    assert fingerprint.examine(guarded)[1] == fingerprint.examine(SOURCE)[1]


def test_imports_are_followed_with_the_packages_on_the_way():
    imported = fingerprint.examine(SOURCE)[1]
    assert imported == {"companion.recover", "companion.evaluate", "companion.energy"}
    deep = fingerprint.examine("def f():\n    from companion.recover.gaussian import gaussian_map\n")[1]
    assert deep == {"companion.recover", "companion.recover.gaussian"}
    framework = "from companion.experiments import problems, shared, context\nimport companion\n"
    assert fingerprint.examine(framework)[1] == fingerprint.MAKES_NUMBERS


examined_once = cache(fingerprint.examine)


def copied(tmp_path, monkeypatch):
    """A copy of the package's sources, which the fingerprint then reads; each text is taken apart once."""
    monkeypatch.setattr(fingerprint, "examine", examined_once)
    for path in fingerprint.PACKAGE.rglob("*.py"):
        target = tmp_path / path.relative_to(fingerprint.PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path)


def codes():
    fingerprint._examined.cache_clear()
    names = ("asim.image_space", "asim.planar", "hand.typicality")
    return {name: fingerprint.code(f"companion.experiments.{name}") for name in names}


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("energy/terms.py", ".square()", ".abs()", {"asim.image_space", "asim.planar"}),  # an L1 norm in SquaredMisfit
        ("energy/terms.py", '"""', '"""Once more: ', set()),
        ("priors/realnvp.py", "self.", "self .", set()),
        ("experiments/context.py", "def map", "def mapped", set()),
        ("experiments/arrays.py", "np.stack", "2 * np.stack", {"asim.image_space", "asim.planar", "hand.typicality"}),
        ("experiments/shared.py", "* 255", "* 256", {"asim.image_space", "hand.typicality"}),
        ("experiments/problems.py", "NOISE_NORM = 0.1", "NOISE_NORM = 0.2", {"asim.image_space"}),
        ("__init__.py", "0.1.0", "9.9.9", set()),
    ],
)
def test_a_change_far_away_is_seen_by_those_that_can_reach_it(tmp_path, monkeypatch, file, old, new, changed):
    copied(tmp_path, monkeypatch)
    before = codes()
    path = tmp_path / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1 if old == '"""' else -1), encoding="utf-8")
    after = codes()
    fingerprint._examined.cache_clear()
    assert {name for name in before if before[name] != after[name]} == changed


@pytest.mark.slow
def test_code_without_a_file_is_hashed_by_what_it_computes(monkeypatch):
    code = """
from companion.experiments import fingerprint
def thing(settings, context):
    return {"m": [m + 1 for m in range(3)]}, {}
found = fingerprint.code("__main__")
"""
    kept = []  # alive, so that no second function has the address of a first

    def declare(text):
        kept.append(types.ModuleType("__main__"))
        monkeypatch.setitem(sys.modules, "__main__", kept[-1])
        exec(text, vars(kept[-1]))
        fingerprint._examined.cache_clear()
        return vars(kept[-1])["found"]

    declared = [declare(code), declare(code + "\n"), declare(code.replace("m + 1", "m + 2"))]
    monkeypatch.undo()
    run = subprocess.run([sys.executable, "-"], input=code + "print(found)", capture_output=True, text=True, check=True)
    fingerprint._examined.cache_clear()
    first, again, other = declared
    assert len(first) == 64 and first == again == run.stdout.strip() != other


NOTEBOOK = """
import functools, torch
from companion import measure
GAIN, WORDS = 2, ("a", "b")
class Gain(measure.Operator):
    power = 1
    def apply(self, x):
        return GAIN * x ** self.power
    @property
    def twice(self):
        return 3
    @staticmethod
    def thrice(x):
        return 4
@torch.no_grad()
def measured(x):
    return Gain((1,), (1,))(x) if x.dtype in {"five", "six", "seven"} else lambda: WORDS
unused = 8
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("GAIN * x", "GAIN + x", False),
        ("GAIN, WORDS = 2", "GAIN, WORDS = 3", False),
        ('"b")', '"c")', False),
        ("power = 1", "power = 2", False),
        ("return 3", "return 2", False),
        ("return 4", "return 2", False),
        ("(1,))(x)", "(1,))(2 * x)", False),
        ('"five"', '"nine"', False),
        ("unused = 8", "unused = 9", True),
        ("import functools", "import json", True),
    ],
)
def test_of_a_notebook_classes_decorated_functions_and_the_numbers_they_name_count(monkeypatch, old, new, same):
    def code(text):
        notebook = types.ModuleType("a_notebook")
        monkeypatch.setitem(sys.modules, "a_notebook", notebook)
        exec(text, vars(notebook))
        fingerprint._examined.cache_clear()
        return fingerprint.code("a_notebook")

    before = code(NOTEBOOK)
    assert old in NOTEBOOK and code(NOTEBOOK) == before
    assert (code(NOTEBOOK.replace(old, new)) == before) == same
    fingerprint._examined.cache_clear()


def test_files_of_the_store_are_recorded_and_their_changes_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "store", lambda: tmp_path)
    flow = tmp_path / "checkpoints" / "flow.safetensors"
    flow.parent.mkdir()
    flow.write_bytes(b"first")
    read = fingerprint.reads([flow, tmp_path.parent / "elsewhere"])
    assert list(read) == ["checkpoints/flow.safetensors"] and fingerprint.changed(read) == []
    flow.write_bytes(b"other content")
    assert fingerprint.changed(read) == ["checkpoints/flow.safetensors"]
    flow.unlink()
    assert fingerprint.changed(read) == ["checkpoints/flow.safetensors"]


FILES = {
    "outsider.py": "import json\nimport torch\nimport helped as h\nfrom grouped.first import value\n",
    "helped.py": "def factor():\n    from lately import more\n    return more\n",
    "lately.py": "more = 1\n",
    "grouped/__init__.py": "",
    "grouped/first.py": "from . import second\nfrom .third import value\n",
    "grouped/second.py": "",
    "grouped/third.py": "value = 1\n",
    "unrelated.py": "",
}


@pytest.mark.parametrize("module", ["outsider", "without_a_file"])
def test_of_an_experiment_outside_the_package_the_authors_other_files_count(tmp_path, monkeypatch, module):
    (tmp_path / "grouped").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    notebook = types.ModuleType("without_a_file")
    monkeypatch.setitem(sys.modules, "without_a_file", notebook)
    for name in ("helped", "grouped", "grouped.first", "grouped.second", "grouped.third"):
        monkeypatch.setitem(sys.modules, name, None)  # so that after the test it is gone
        del sys.modules[name]
    exec(FILES["outsider.py"], vars(notebook))

    def code():
        fingerprint._examined.cache_clear()
        fingerprint._own.cache_clear()
        return fingerprint.code(module)

    before, seen = code(), set()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text + "x = 2\n")
        if code() != before:
            seen.add(name)
        (tmp_path / name).write_text(text)
    assert code() == before
    fingerprint._examined.cache_clear()
    fingerprint._own.cache_clear()
    expected = set(FILES) - {"unrelated.py"}
    # a notebook holds the value of a module that it does not hold
    missed = {name for name in FILES if name.startswith("grouped")} | {"outsider.py"}
    assert seen == (expected if module == "outsider" else expected - missed)
