import io
import json
import multiprocessing
import os
import signal
import zipfile

import numpy as np
import pytest

from companion._support import sha256
from companion.experiments import store
from companion.experiments.arrays import named

FIELDS = {"kind": str}


@pytest.fixture
def stem(tmp_path):
    stem = tmp_path / "m=0.2"
    store.write(stem, {"kind": "x"}, {"a": np.arange(6.0).reshape(2, 3), "file": np.array(["é", "b"])})
    return stem


def test_round_trip_keeps_values_types_and_awkward_names(stem):
    document, arrays = store.read(stem, FIELDS)
    assert document["kind"] == "x" and set(arrays) == {"a", "file"}
    np.testing.assert_array_equal(arrays["a"], np.arange(6.0).reshape(2, 3))
    assert arrays["a"].dtype == np.float64 and arrays["file"].tolist() == ["é", "b"]
    assert sorted(path.name for path in stem.parent.iterdir()) == ["m=0.2.json", "m=0.2.npz"]


def test_same_content_gives_same_bytes(stem, tmp_path):
    again = tmp_path / "again" / "m=0.2"
    store.write(again, {"kind": "x"}, {"file": np.array(["é", "b"]), "a": np.arange(6.0).reshape(2, 3)})
    for suffix in (".json", ".npz"):
        assert store.beside(stem, suffix).read_bytes() == store.beside(again, suffix).read_bytes()


def test_every_flipped_byte_of_the_arrays_is_noticed(stem):
    path = store.beside(stem, ".npz")
    packed = path.read_bytes()
    for position in range(0, len(packed), 17):
        path.write_bytes(packed[:position] + bytes([packed[position] ^ 1]) + packed[position + 1 :])
        with pytest.raises(store.DamagedFile, match=r"m=0\.2\.npz: its checksum"):
            store.read(stem, FIELDS)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "not a readable JSON file"),
        (lambda text: "[1]", "holds a list"),
        (lambda text: text.replace('"x"', '"y"'), "checksum does not match"),
        (lambda text: text.replace('"x"', "1"), "field 'kind' is missing"),
        (lambda text: text.replace('"x"', "NaN"), "not a readable JSON file"),
        (lambda text: json.dumps({"kind": "x"}), "field 'arrays' is missing"),
        (lambda text: text.replace('"x"', '"x", "m": 1e905'), "not a readable JSON file"),
        (lambda text: "[" * 100_000, "not a readable JSON file"),
    ],
)
def test_damaged_json_is_named(stem, damage, says):
    path = store.beside(stem, ".json")
    path.write_text(damage(path.read_text()))
    with pytest.raises(store.DamagedFile, match=says) as caught:
        store.read(stem, FIELDS)
    assert "m=0.2.json" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_arrays_are_named(stem):
    store.beside(stem, ".npz").unlink()
    with pytest.raises(store.DamagedFile, match=r"m=0\.2\.npz: not a readable file"):
        store.read(stem, FIELDS)


def test_pickles_are_not_read_even_with_matching_checksums(stem):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a.npy", "w") as member:
        np.lib.format.write_array(member, np.array([{}], dtype=object), allow_pickle=True)
    path = store.beside(stem, ".json")
    store.beside(stem, ".npz").write_bytes(buffer.getvalue())
    document = json.loads(path.read_text())
    document["arrays"]["sha256"] = sha256(buffer.getvalue())
    document["sha256"] = store._digest(document)
    path.write_text(json.dumps(document))
    with pytest.raises(store.DamagedFile, match="not an archive of plain arrays"):
        store.read(stem, FIELDS)


def test_failed_write_leaves_the_old_file_and_no_other(stem, monkeypatch):
    before = store.beside(stem, ".npz").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.write(stem, {"kind": "z"}, {"a": np.zeros(3)})
    assert store.beside(stem, ".npz").read_bytes() == before
    assert len(list(stem.parent.iterdir())) == 2


def killed_writing(stem, kind, moment):
    """Write in a process that is killed at one of its calls of fsync and replace, which are five or six."""
    child = os.fork()
    if child == 0:
        calls = []

        def die_at(function):
            def call(*given):
                calls.append(function)
                return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == moment else function(*given)

            return call

        os.fsync, os.replace = die_at(os.fsync), die_at(os.replace)
        store.write(stem, {"kind": kind}, {"a": np.array([kind])})
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 6))
@pytest.mark.parametrize("second", range(1, 7))
def test_a_kill_at_any_moment_leaves_a_whole_pair_and_the_next_write_leaves_no_other_file(tmp_path, first, second):
    stem = tmp_path / "m=0.2"
    store.write(stem, {"kind": "old"}, {"a": np.array(["old"])})
    stored = "old"
    for kind, moment in (("new", first), ("newer", second)):
        killed_writing(stem, kind, moment)
        document, arrays = store.read(stem, FIELDS)
        assert document["kind"] == arrays["a"].item() and document["kind"] in (stored, kind)
        stored = document["kind"]
    store.write(stem, {"kind": "last"}, {"a": np.array(["last"])})
    assert store.read(stem, FIELDS)[0]["kind"] == "last"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m=0.2.json", "m=0.2.npz"]


def test_a_first_write_killed_between_its_files_is_read(tmp_path):
    killed_writing(tmp_path / "x", "new", 4)
    assert store.read(tmp_path / "x", FIELDS)[0]["kind"] == "new"


def writes(stem, kind, rounds):
    for number in range(rounds):
        store.write(stem, {"kind": f"{kind} {number}"}, {"a": np.full(200, number), "b": np.array(kind)})


@pytest.mark.slow
def test_two_writers_at_once_and_a_reader_meet_whole_pairs_only(tmp_path):
    stem = tmp_path / "x"
    store.write(stem, {"kind": "first"}, {})
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=writes, args=(stem, kind, 250)) for kind in ("one", "two")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        document, arrays = store.read(stem, FIELDS)
        seen.add(document["kind"])
        if arrays:
            assert document["kind"] == f"{arrays['b']} {arrays['a'][0]}"
    assert [writer.exitcode for writer in writers] == [0, 0]
    document, arrays = store.read(stem, FIELDS)
    assert document["kind"].endswith(" 249") and arrays["a"][0] == 249
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.npz"]


def test_a_link_under_a_temporary_name_is_not_followed(stem, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in (".m=0.2.npz.tmp", ".m=0.2.json.tmp", ".m=0.2.json.00.part"):
        (tmp_path / name).symlink_to(outside)
    store.write(stem, {"kind": "z"}, {})
    assert outside.read_text() == "mine" and store.read(stem, FIELDS)[0]["kind"] == "z"


def npy(array_header=None):
    buffer = io.BytesIO()
    if array_header is None:
        np.save(buffer, np.arange(3))
    else:
        np.lib.format.write_array_header_1_0(buffer, array_header)
    return buffer.getvalue()


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy(),
        zipped(npy({"descr": "<f8", "fortran_order": False, "shape": (2**40,)})),
        zipped(npy({"descr": "<f8", "fortran_order": False, "shape": (2**70,)})),
        zipped(b""),
        zipped(npy())[:-30],
    ],
)
def test_other_files_under_the_arrays_name_are_damaged_even_with_a_checksum_that_fits(stem, content):
    store.beside(stem, ".npz").write_bytes(content)
    path = store.beside(stem, ".json")
    document = json.loads(path.read_text())
    document["arrays"]["sha256"] = sha256(content)
    document["sha256"] = store._digest(document)
    path.write_text(json.dumps(document))
    with pytest.raises(store.DamagedFile, match="not an archive of plain arrays"):
        store.read(stem, FIELDS)


def test_names_of_axes_come_back(stem):
    store.write(stem, {"kind": "x"}, {"a": named(np.zeros((2, 3)), m=np.array([4, 8]), image=3), "b": np.zeros(1)})
    assert store.axes(store.read(stem, FIELDS)[0]) == {"a": {"m": [4, 8], "image": [0, 1, 2]}}


def test_plain_values():
    given = {"a": (1, np.float32(0.5)), "b": {"c": None, "d": np.bool_(True)}}
    assert store.plain("metrics", given) == {"a": [1, 0.5], "b": {"c": None, "d": True}}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"psnr": [1.0, float("nan")]}, r"nan at psnr\[1\]"),
        ({"psnr": {"flow": np.float64("inf")}}, r"inf at psnr\.flow"),
        ({"psnr": np.zeros(2)}, "ndarray at psnr"),
        ({"psnr": {0.2: 1.0}}, "keys that are not text at psnr"),
    ],
)
def test_values_that_json_lacks_are_refused_with_their_place(value, place):
    with pytest.raises(ValueError, match=f"metrics: got .*{place}"):
        store.plain("metrics", value)


def test_arrays_come_in_one_order():
    assert list(store.check_arrays({"b": np.zeros(1), "a": np.ones(1)})) == ["a", "b"]


@pytest.mark.parametrize(
    "value",
    [
        [1],
        {"a": [1.0]},
        {"a": np.array([None])},
        {1: np.zeros(2)},
        {"a\0b": np.zeros(2)},
        {"a": np.ma.array([1.0, 2.0], mask=[True, False])},
        {"a": np.recarray(2, dtype=[("x", "f4")])},
    ],
)
def test_arrays_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="arrays: got"):
        store.check_arrays(value)
