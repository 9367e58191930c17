"""Checks of arguments: what is allowed passes unchanged, all else is refused in one line that names it."""

import hashlib
import math
import multiprocessing
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from companion import _support


def refused(call, *parts):
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message and message.count("; allowed: ") == 1
    for part in parts:
        assert part in message


def test_one_of():
    assert _support.one_of("kind", "a", ["a", "b"]) == "a"
    assert _support.one_of("kind", 3, range(5)) == 3
    assert _support.one_of("kind", None, iter([None])) is None
    refused(lambda: _support.one_of("kind", "c", ["a", "b"]), "kind: got 'c'", "a, b")
    refused(lambda: _support.one_of("kind", "c", []), "nothing yet")
    refused(lambda: _support.one_of("kind", ["a"], ["a", "b"]), "got ['a']")


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, 10**9])
def test_positive_passes_numbers_above_zero(value):
    assert _support.positive("size", value) == value and type(_support.positive("size", value)) is type(value)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, torch.tensor])
def test_whole_numbers_of_numpy_and_torch_become_pythons(kind):
    for check in (_support.count, _support.positive):
        assert check("size", kind(100)) == 100 and type(check("size", kind(100))) is int


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.longdouble, np.array, torch.tensor])
def test_fractions_of_numpy_and_torch_become_pythons(kind):
    assert _support.positive("size", kind(0.5)) == 0.5 and type(_support.positive("size", kind(0.5))) is float
    refused(lambda: _support.count("size", kind(0.5)), "a whole number >= 1")
    refused(lambda: _support.positive("size", kind(math.nan)), "size: got", "a finite number > 0")


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 0.0, -1e-9, math.nan, math.inf, -math.inf, True, np.True_, torch.tensor(True), "1", None, [1], 1j),
        *(np.complex64(1), -(10**400), torch.tensor(1j), torch.tensor([1.0, 2.0]), np.ones(1)),
    ],
)
def test_positive_refuses_the_rest(value):
    refused(lambda: _support.positive("size", value), "size: got", "a finite number > 0")


def test_zero_passes_where_it_is_allowed():
    assert _support.positive("size", 0, zero=True) == 0 and _support.positive("size", 0.0, zero=True) == 0
    refused(lambda: _support.positive("size", -1e-9, zero=True), ">= 0")
    refused(lambda: _support.positive("size", math.nan, zero=True), ">= 0")
    refused(lambda: _support.positive("size", False, zero=True), ">= 0")


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "3", None, math.nan, math.inf])
def test_count_refuses_all_but_whole_numbers(value):
    refused(lambda: _support.count("steps", value), "steps: got", "a whole number >= 1")


def test_count_passes_whole_numbers():
    assert _support.count("seed", 10**400) == 10**400
    assert _support.count("steps", 1) == 1 and _support.count("steps", 0, least=0) == 0
    refused(lambda: _support.count("steps", 1, least=2), ">= 2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_passes_floating_point_tensors_unchanged(dtype):
    x = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    assert _support.finite("x", x) is x
    empty = torch.ones(0, dtype=dtype)
    assert _support.finite("x", empty) is empty


@pytest.mark.parametrize(
    "value, given",
    [
        (torch.tensor([1.0, math.nan, math.inf]), "x: got 2 NaN or infinite values of 3"),
        (torch.tensor([1, 2]), "torch.int64 tensor"),
        (torch.tensor([True]), "torch.bool tensor"),
        (np.ones(3), "ndarray"),
        ([1.0], "list"),
        (None, "NoneType"),
    ],
)
def test_finite_refuses_the_rest(value, given):
    refused(lambda: _support.finite("x", value), "x: got", given)


def test_batch_of():
    x = torch.ones(5, 3, 2)
    assert _support.batch_of("x", x, (3, 2)) is x and _support.batch_of("x", x, [3, 2]) is x
    single = torch.ones(4)
    assert _support.batch_of("x", single, ()) is single
    for wrong in (torch.ones(3, 2), torch.ones(0, 3, 2), torch.ones(5, 2, 3), torch.ones(5, 3, 2, 1)):
        refused(lambda w=wrong: _support.batch_of("x", w, (3, 2)), f"got shape {tuple(wrong.shape)}", "[batch, 3, 2]")
    refused(lambda: _support.batch_of("x", np.ones((5, 3, 2)), (3, 2)), "got shape ndarray")


def test_images():
    x = torch.rand(2, 3, 4, 5)
    assert _support.images("x", x) is x and _support.images("x", x, (3, 4, 5)) is x
    assert _support.images("x", torch.tensor([[[[0.0, 1.0]]]])).numel() == 2
    refused(lambda: _support.images("x", x, (3, 5, 4)), "[batch, 3, 5, 4]")
    refused(lambda: _support.images("x", x[0]), "got (3, 4, 5)")
    refused(lambda: _support.images("x", x[:0]), "got (0, 3, 4, 5)")
    refused(lambda: _support.images("x", [x]), "got list")
    refused(lambda: _support.images("x", 255 * x.round()), "pixels from 0 to 255")
    refused(lambda: _support.images("x", x - 1), "pixels in [0, 1]")
    refused(lambda: _support.images("x", (255 * x).to(torch.uint8)), "torch.uint8 tensor")
    refused(lambda: _support.images("x", x * math.nan), "120 NaN")
    refused(lambda: _support.images("x", torch.full((1, 1, 1, 1), 1 + 1e-7)), "to 1.0000001", "pixels in [0, 1]")


def first(source):
    return torch.randn(1000, generator=source, dtype=torch.float64)


def test_named_streams_share_no_numbers_and_generators_pass_through():
    names = [(), ("noise",), ("noise", 0), ("noise", 1), ("matrix",), ("noise0",)]
    draws = torch.stack([first(_support.generator(seed, *name)) for seed in (0, 1, 2**70) for name in names])
    assert (torch.corrcoef(draws) - torch.eye(len(draws), dtype=draws.dtype)).abs().max() < 5 / math.sqrt(1000)
    assert torch.equal(first(_support.generator(2**70, "noise", 1)), draws[15])
    assert torch.equal(first(_support.generator(np.int64(1), "noise", np.int64(1))), draws[9])
    given = torch.Generator()
    assert _support.generator(given, "noise") is given
    for wrong in (None, -1, 1.5, True, "0", torch.ones(2)):
        refused(lambda w=wrong: _support.generator(w), "seed: got", "a whole number >= 0")


def test_normal_draws_depend_on_the_stream_alone_and_follow_the_dtype():
    like = torch.zeros((), dtype=torch.float64)
    torch.manual_seed(0)
    once = _support.normal((1000, 3), 4, like, "start")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(once, _support.normal((1000, 3), 4, like, "start")) and torch.equal(state, torch.get_rng_state())
    assert once.dtype == torch.float64 and once.shape == (1000, 3)
    assert abs(float(once.mean())) < 0.1 and abs(float(once.std()) - 1) < 0.1
    source = _support.generator(4, "start")
    assert torch.equal(once, _support.normal((1000, 3), source, like))
    assert not torch.equal(once, _support.normal((1000, 3), source, like))  # a generator moves on
    assert _support.normal((2,), 4, like.float()).dtype == torch.float32


def test_a_file_is_replaced_whole_with_an_ordinary_mode_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    mask = os.umask(0o027)
    try:
        with _support.atomic(path) as part:
            part.unlink()
            part.write_bytes(b"one")
            part.chmod(0o600)  # as safetensors' writer does
            assert part.parent == path.parent and not path.exists()
        assert path.read_bytes() == b"one" and stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(mask)
    with pytest.raises(KeyboardInterrupt), _support.atomic(path) as part:
        part.write_bytes(b"tw")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"one" and list(path.parent.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, calls = tmp_path / "file", []

    def sync(handle):
        os.write(handle, b"")  # as on Windows: only a handle for writing can be synced
        calls.append((os.fstat(handle).st_size, path.exists()))

    monkeypatch.setattr(_support.os, "fsync", sync)
    with _support.atomic(path) as part:
        part.write_bytes(b"12345")
    assert calls == [(5, False)] and path.read_bytes() == b"12345"


def test_links_are_replaced_not_followed(tmp_path, monkeypatch):
    secret, path = tmp_path / "secret", tmp_path / "folder" / "file"
    secret.write_bytes(b"mine")
    path.parent.mkdir()
    path.symlink_to(secret)
    with _support.atomic(path) as part:
        part.write_bytes(b"new")
    assert secret.read_bytes() == b"mine" and not path.is_symlink() and path.read_bytes() == b"new"
    monkeypatch.setattr(_support.secrets, "token_hex", lambda _: "guessed")
    (path.parent / ".file.guessed.part").symlink_to(secret)
    with pytest.raises(FileExistsError), _support.atomic(path):
        pass
    assert secret.read_bytes() == b"mine"


def _write(path, content, times):
    for _ in range(times):
        with _support.atomic(path) as part:
            part.write_bytes(content)


@pytest.mark.slow
def test_two_processes_that_write_one_file_leave_one_of_their_contents(tmp_path):
    path, contents = tmp_path / "file", [letter * 200_000 for letter in (b"a", b"b")]
    context = multiprocessing.get_context("fork")  # without an import of torch each
    writers = [context.Process(target=_write, args=(path, content, 15)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= set(contents) and path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_digests_are_of_all_parts_in_a_row(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    (tmp_path / "file").write_bytes(b"x" * (2**20 + 1))
    expected = "aé".encode() + b"b" + array.T.tobytes() + array.tobytes() + b"\x01\x00" + b"x" * (2**20 + 1)
    parts = ("aé", memoryview(b"b"), array.T, torch.from_numpy(array), torch.tensor([True, False]), tmp_path / "file")
    assert _support.sha256(*parts) == hashlib.sha256(expected).hexdigest()


@pytest.mark.slow
def test_no_import_changes_the_allocator_and_a_call_does_unless_glibcs_variables_are_set():
    modules = "data, energy, evaluate, experiments, measure, priors, recover, show, cli"
    code = f"""
import ctypes, os
calls = []
class Library:
    def __init__(self, name):
        self.mallopt = lambda *option: calls.append(option)
real = ctypes.CDLL
ctypes.CDLL = lambda name=None, *rest, **more: Library(name) if name is None else real(name, *rest, **more)
import companion
from companion import {modules}
assert not calls, calls
os.environ["MALLOC_ARENA_MAX"] = "0"
companion.keep_freed_memory()
assert not calls, calls
del os.environ["MALLOC_ARENA_MAX"]
companion.keep_freed_memory()
print(len(calls))
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    run = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert run.stdout.strip() == "2", run.stderr


def test_the_store_is_the_folder_of_the_checkout():
    assert _support.store().name in ("data", "_stored")
