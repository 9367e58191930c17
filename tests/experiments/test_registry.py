import hashlib
import subprocess
import sys

import pytest
import tiny_experiment

from companion import experiments
from companion.experiments import provenance, registry
from companion.experiments.provenance import code_hash, package_hash

SOURCE = '''
from companion.experiments import experiment

@experiment("some.thing", paper="Nobody 1900", shows="Fig. 1", profiles={"laptop": build(), "quick": {"m": 3}})
def thing(settings, context):
    """Does a thing.

    At length.
    """
'''


def test_names_and_declaration_of_a_registered_experiment():
    assert "test.tiny" in experiments.names()
    found = registry.declaration("test.tiny")
    assert (found.paper, found.shows, found.profiles) == ("Nobody 1900", "Fig. 0", ("quick", "laptop"))
    assert found.summary == "Averages normal draws."
    with open(tiny_experiment.__file__, "rb") as file:
        assert found.code_sha256 == hashlib.sha256(file.read()).hexdigest()


def test_declaration_is_read_without_import():
    (found,) = registry.declared_in(SOURCE, "some.module")
    assert (found.name, found.paper, found.shows, found.summary) == (
        "some.thing",
        "Nobody 1900",
        "Fig. 1",
        "Does a thing.",
    )
    assert found.profiles == ("quick", "laptop")
    assert found.module == "some.module"


def test_read_and_imported_declarations_agree():
    with open(tiny_experiment.__file__, encoding="utf-8") as file:
        (read,) = registry.declared_in(file.read(), "tiny_experiment")
    assert read == registry.declaration("test.tiny")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"some.thing"', "NAME"),
        ('paper="Nobody 1900", ', ""),
        ('profiles={"laptop": build(), "quick": {"m": 3}}', "profiles=P"),
    ],
)
def test_unreadable_declarations_are_refused(old, new):
    with pytest.raises(ValueError, match=r"some\.module\.thing: its @experiment cannot be read"):
        registry.declared_in(SOURCE.replace(old, new), "some.module")


def test_every_experiment_of_the_package_imports_as_declared():
    for name in experiments.names():
        read = registry.declaration(name)
        assert registry.get(name).declaration == read
        assert read.summary and read.paper and read.shows, name


def test_listing_imports_no_experiment():
    code = (
        "import sys; from companion import experiments; names = experiments.names();"
        "[experiments.describe(name) for name in names];"
        "known = {'store', 'provenance', 'context', 'registry', 'results'};"
        "print([m for m in sys.modules if m.startswith('companion.experiments.') and m.split('.')[2] not in known])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_says_what_is_known():
    for call in (experiments.run, experiments.load, experiments.describe, registry.get):
        with pytest.raises(ValueError, match=r"experiment: got 'asim\.nothing'; allowed: .*test\.tiny") as caught:
            call("asim.nothing")
        assert "\n" not in str(caught.value)


def test_name_taken_by_another_function_is_refused_but_the_same_one_may_come_again():
    again = experiments.experiment("test.tiny", paper="", shows="", profiles={"quick": {}})
    with pytest.raises(ValueError, match=r"'test\.tiny', which tiny_experiment has"):
        again(lambda settings, context: ({}, {}))
    entry = registry.get("test.tiny")
    experiments.experiment("test.tiny", paper="Nobody 1900", shows="Fig. 0", profiles=entry.settings)(entry.function)
    assert registry.get("test.tiny") == entry


def test_name_of_an_experiment_that_is_not_imported_is_taken_too(monkeypatch):
    monkeypatch.delitem(registry._registered, "asim.planar", raising=False)
    again = experiments.experiment("asim.planar", paper="", shows="", profiles={"quick": {}})
    with pytest.raises(ValueError, match=r"'asim\.planar', which companion\.experiments\.asim\.planar has"):
        again(lambda settings, context: ({}, {}))


def test_an_experiment_without_source_text_is_hashed_by_what_it_computes():
    code = """
from companion.experiments import experiment, registry
@experiment("some.thing", paper="", shows="", profiles={"quick": {}})
def thing(settings, context):
    return {"m": [m + 1 for m in range(3)]}, {}
print(registry.declaration("some.thing").code_sha256)
"""

    def declare(text):
        return subprocess.run([sys.executable, "-"], input=text, capture_output=True, text=True, check=True).stdout

    first, again, other = map(declare, (code, code + "\n", code.replace("m + 1", "m + 2")))
    assert len(first.strip()) == 64 and first == again != other


@pytest.mark.parametrize(
    ("name", "profiles", "says"),
    [
        ("tiny", {"quick": {}}, "name: got 'tiny'"),
        ("Test.tiny", {"quick": {}}, "name: got 'Test.tiny'"),
        ("test.other", {}, "profiles: got none"),
        ("test.other", {"huge": {}}, "profiles: got 'huge'; allowed: quick, laptop, paper"),
        ("test.other", {"quick": 3}, "settings: got int"),
        ("test.other", {"quick": {"m": {1, 2}}}, "settings: got set at m"),
    ],
)
def test_malformed_declarations_are_refused(name, profiles, says):
    with pytest.raises(ValueError, match=says):
        experiments.experiment(name, paper="", shows="", profiles=profiles)


def test_code_hash_ignores_line_endings_and_nothing_else():
    assert code_hash("a = 1\nb = 2\n") == code_hash("a = 1\r\nb = 2\r\n")
    assert code_hash("a = 1\nb = 2\n") != code_hash("a = 1\nb = 3\n")


def test_package_hash_follows_every_module_and_every_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "companion" / "experiments" / "provenance.py"))
    monkeypatch.setattr(provenance, "store", lambda: tmp_path / "data")
    files = [tmp_path / "companion" / "recover" / "search.py", tmp_path / "data" / "checkpoints" / "flow.safetensors"]
    seen = {package_hash()}
    for file in files:
        file.parent.mkdir(parents=True)
        for content in ("first", "second"):
            file.write_text(content)
            seen.add(package_hash())
    assert len(seen) == 5 and package_hash() in seen
