import pytest
import tiny_experiment

from companion import experiments
from companion.experiments import registry


def test_a_registered_experiment():
    assert "test.tiny" in experiments.names()
    found = registry.get("test.tiny")
    assert (found.paper, found.shows, list(found.settings)) == ("Nobody 1900", "Fig. 0", ["quick", "laptop"])
    assert found.summary == "Averages normal draws."


def test_every_experiment_of_the_package_is_found_and_says_what_it_is():
    assert {"asim.image-space", "hand.memory"} <= set(experiments.names())
    for name in experiments.names():
        entry = registry.get(name)
        assert entry.summary and entry.paper and entry.shows and "quick" in entry.settings, name


def test_unknown_name_says_what_is_near_and_what_is_known():
    for call in (experiments.run, experiments.load, experiments.describe, registry.get):
        with pytest.raises(
            ValueError, match=r"experiment: got 'test\.tniy'; allowed: ang.* \(did you mean test\.tiny\?\)$"
        ) as caught:
            call("test.tniy")
        assert "\n" not in str(caught.value)


def test_name_taken_by_another_function_is_refused_but_the_same_one_may_come_again():
    again = experiments.experiment("test.tiny", paper="", shows="", profiles={"quick": {}})
    with pytest.raises(ValueError, match=r"'test\.tiny', which tiny_experiment has"):
        again(lambda settings, context: ({}, {}))
    entry = registry.get("test.tiny")
    told = {"paper": entry.paper, "shows": entry.shows, "profiles": entry.settings, "tolerances": entry.tolerances}
    assert experiments.experiment("test.tiny", **told)(tiny_experiment.tiny) is tiny_experiment.tiny
    assert registry.get("test.tiny") == entry


@pytest.mark.parametrize(
    ("name", "profiles", "says"),
    [
        ("tiny", {"quick": {}}, "name: got 'tiny'"),
        ("Test.tiny", {"quick": {}}, "name: got 'Test.tiny'"),
        ("test.other", {}, "profiles: got none"),
        ("test.other", {"huge": {}}, "profiles: got 'huge'; allowed: quick, laptop, overnight, paper"),
        ("test.other", {"quick": 3}, "settings: got int"),
        ("test.other", {"quick": {"m": {1, 2}}}, "settings: got set at m"),
    ],
)
def test_malformed_declarations_are_refused(name, profiles, says):
    with pytest.raises(ValueError, match=says):
        experiments.experiment(name, paper="", shows="", profiles=profiles)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": 3}, r"setting: got 'image'; allowed: .* \(did you mean images\?\)$"),
        ({"images": "3"}, "images: got '3'; allowed: int, as 2"),
        ({"images": 2.5}, r"images: got 2\.5; allowed: int"),
        ({"images": True}, "images: got True; allowed: int"),
        ({"measurements": (4, "b")}, "measurements: got 'b'; allowed: int, as 4"),
        ({"label": 3}, "label: got 3; allowed: str"),
        ({"images": 0}, "images: got 0; allowed: one or more, of whole numbers those >= 1"),
        ({"images": -1}, "images: got -1; allowed"),
        ({"measurements": ()}, r"measurements: got \(\); allowed: one or more"),
        ({"measurements": (4, 0)}, r"measurements: got \(4, 0\); allowed"),
    ],
)
def test_settings_change_to_values_of_their_own_kind_only(changes, says):
    with pytest.raises(ValueError, match=says):
        registry.with_changes(registry.get("test.tiny").settings["quick"], changes)


def test_changed_settings():
    quick = registry.get("test.tiny").settings["quick"]
    changed = registry.with_changes(quick, {"images": 5, "measurements": 8, "scale": 2})
    assert (changed.images, changed.measurements, changed.scale, changed.label) == (5, (8,), 2.0, "none")
    assert type(changed.scale) is float and quick.images == 2
    assert registry.with_changes({"m": [1, 2], "k": 1}, {"m": [3]}) == {"m": [3], "k": 1}
    none = {"m": [], "k": 0}  # what another profile has, any may have
    assert registry.with_changes({"m": [1, 2], "k": 1}, none, [none]) == none
