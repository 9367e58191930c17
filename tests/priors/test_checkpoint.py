"""Files of weights: what was saved comes back, and nothing else is taken for it."""

import json
import multiprocessing
import os
import signal
import struct

import numpy as np
import pytest
import torch
from flow_cases import rand, tiny
from safetensors.torch import save_file

from companion import _support, priors, training
from companion.priors import base, checkpoint
from companion.priors.bijections import ActNorm, Chain
from companion.priors.checkpoint import read_tensors, write_tensors
from companion.training.recipes import RECIPES

CARD = {"data": "none", "test score": 1.25}


@pytest.fixture
def stored(tmp_path):
    flow = tiny(dtype=torch.float32)
    flow.initialised.fill_(True)
    return priors.save(flow, tmp_path / "small.safetensors", CARD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_comes_back_as_it_was_frozen_and_in_evaluation_mode(tmp_path, dtype):
    flow = tiny(dtype=dtype, coupling="additive", conv1x1="lu", pixels="logit", bits=5)
    path = priors.save(flow, tmp_path / "new" / "folder" / "flow.safetensors", CARD)
    again = priors.load(path)
    x = rand(2, 1, 4, 4, dtype=dtype)
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert again.config == flow.config and again.card == CARD and again.shape == flow.shape
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert torch.equal(priors.load(str(path)).log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_arguments_that_were_arrays_come_back(tmp_path, kind):
    flows = [
        priors.ImageMsIGN((1, 8, 8), mu=kind([0.4]), steps=1, width=4),
        priors.Glow(kind([1, 8, 8]), levels=1, steps=1, width=4),
    ]
    z = rand(2, 64, dtype=torch.float32)
    for flow in flows:
        again = priors.load(priors.save(flow, tmp_path / "a.safetensors"))
        assert torch.equal(again.decode(z), flow.decode(z)) and again.config.keys() == flow.config.keys()


def test_training_goes_on_from_a_loaded_flow_without_a_new_initialisation(stored):
    flow = priors.load(stored)
    starts = {k: v.clone() for k, v in flow.state_dict().items() if k.endswith("start")}
    biases = {k: v.clone() for k, v in flow.named_parameters() if k.endswith("norm.bias")}
    settings = training.Schedule(steps=1, batch_size=8, warm_up=0, learning_rate=1e-3, average=0.0)
    training.fit(flow, 3 * rand(16, 1, 4, 4, dtype=torch.float32) / 4, training.Likelihood(), settings, progress=False)
    assert starts and all(torch.equal(starts[k], flow.state_dict()[k]) for k in starts)
    now = dict(flow.named_parameters())
    assert all((now[k] - biases[k]).abs().max() <= 1.01e-3 for k in biases)  # one step of Adam, no more


# --- files that are something else


def header_of(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(data: bytes, change) -> bytes:
    header, rest = header_of(data)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def flip_bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def other_facts(**change):
    """The same weights under other facts, as a file of this package would hold them."""

    def rewrite(path):
        tensors, about = read_tensors(path)
        write_tensors(path, tensors, {k: v for k, v in (about | change).items() if v is not None})

    return rewrite


def other_tensors(change):
    def rewrite(path):
        tensors, about = read_tensors(path)
        write_tensors(path, change(tensors), about)

    return rewrite


def bytes_to(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


DAMAGE = {
    "empty": bytes_to(lambda data: b""),
    "truncated header": bytes_to(lambda data: data[:100]),
    "truncated weights": bytes_to(lambda data: data[:-10]),
    "half": bytes_to(lambda data: data[: len(data) // 2]),
    "longer": bytes_to(lambda data: data + b"\0" * 8),
    "random bytes": bytes_to(lambda data: bytes(range(256)) * 40),
    "text": bytes_to(lambda data: b"<html>404 Not Found</html>"),
    "one bit of the weights": bytes_to(lambda data: flip_bit(data, len(data) - 5)),
    "one bit of the facts": bytes_to(lambda data: data.replace(b'\\"steps\\": 2', b'\\"steps\\": 6', 1)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "no facts": lambda path: save_file({"a": torch.zeros(2)}, path),
    "facts are no JSON": lambda path: save_file({"a": torch.zeros(2)}, path, metadata={"about": "{"}),
    "facts are nested deeply": lambda path: save_file({"a": torch.zeros(2)}, path, metadata={"about": '{"a":' * 10**5}),
    "complex weights": other_tensors(lambda t: {k: v + 0j if v.is_floating_point() else v for k, v in t.items()}),
    "facts are a list": lambda path: save_file({"a": torch.zeros(2)}, path, metadata={"about": "[1]"}),
    "pickle": lambda path: torch.save({"a": torch.zeros(2)}, path),
    "unknown model": other_facts(model="Flower"),
    "model of another kind": other_facts(model="VAE"),
    "model is a list": other_facts(model=["Glow"]),
    "no model": other_facts(model=None),
    "no config": other_facts(config=None),
    "config of another shape": other_facts(config={"shape": [3, 4, 4], "levels": 2, "steps": 2, "width": 4}),
    "config wider": other_facts(config={"shape": [1, 4, 4], "levels": 2, "steps": 2, "width": 5}),
    "config impossible": other_facts(config={"shape": [1, 5, 4]}),
    "config with an unknown name": other_facts(config={"depth": 3}),
    "config is a list": other_facts(config=[1, 2]),
    "a tensor is missing": other_tensors(lambda t: dict(list(t.items())[1:])),
    "all tensors are missing": other_tensors(lambda t: {}),
    "a tensor too many": other_tensors(lambda t: t | {"more": torch.zeros(1)}),
    "a wrong shape": other_tensors(lambda t: {k: torch.zeros(3, 3, 3) for k in t}),
    "a training's state": other_facts(model=None, settings={}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_or_foreign_file_is_refused_in_one_line_that_names_it(stored, damage):
    damage(stored)
    with pytest.raises(ValueError, match=r"got .*small\.safetensors.*; allowed: ") as refusal:
        priors.load(stored)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


def test_unknown_names_are_refused_with_the_choices(tmp_path, monkeypatch):
    monkeypatch.setattr(_support, "store", lambda: tmp_path)
    (tmp_path / "checkpoints").mkdir()
    priors.save(tiny(), tmp_path / "checkpoints" / "one.safetensors")
    assert priors.names() == ["one"] and priors.load("one").shape == (1, 4, 4)
    for name in ("two", "", "../one", 3, None, ["one"]):
        with pytest.raises(ValueError, match=r"prior: got .*no such file; allowed: a checkpoint file or one"):
            priors.load(name)
    with pytest.raises(ValueError, match=r"prior: got .*missing\.safetensors.*no such file"):
        priors.load(tmp_path / "missing.safetensors")


def test_any_name_will_do_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny(dtype=torch.float32)
    priors.save(model, "m.st")
    x = rand(1, 1, 4, 4, dtype=torch.float32)
    assert torch.equal(priors.load("m.st").log_prob(x), model.log_prob(x))


def test_a_class_that_load_does_not_know_is_refused_before_anything_is_written(tmp_path):
    class Mine(priors.Glow):
        pass

    for model in (Mine(shape=(1, 4, 4), levels=1, steps=1, width=2), priors.Flow((2,), Chain([ActNorm(2)]), None)):
        with pytest.raises(ValueError, match=r"prior: got a (Mine|Flow), which load does not know; allowed: .*GAN, "):
            priors.save(model, tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_class_of_a_users_own_is_saved_loaded_and_averaged_once_it_is_registered(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MODELS", dict(priors.MODELS))
    monkeypatch.setattr(checkpoint, "MODELS", base.MODELS)

    class Mine(priors.PointFlow):
        def __init__(self, widths=(4, 4)):
            super().__init__(len(widths), widths[0])

    flow, path = Mine(), tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match=r"or a class of your own after priors.register\(Mine\)"):
        priors.save(flow, path)
    assert priors.register(Mine) is Mine
    flow = Mine((3, 3, 3))
    schedule = training.Schedule(steps=2, batch_size=4)
    points, running = rand(8, 2, dtype=torch.float32), tmp_path / "mine.training"
    training.fit(flow, points, training.PointLikelihood(), schedule, checkpoint=running, progress=False)
    for again in (priors.load(priors.save(flow, path)), training.averaged(running)):
        assert type(again) is Mine and torch.equal(again.log_prob(points), flow.log_prob(points))
    del base.MODELS["Mine"]
    with pytest.raises(ValueError, match=r"no model 'Mine': a class of your own needs priors.register first"):
        priors.load(path)
    taken = type("Glow", (priors.Glow,), {})
    for wrong, message in ((taken, "got Glow, a name that is taken"), (priors.Flow, "its own __init__"), (3, "got 3;")):
        with pytest.raises(ValueError, match=message):
            priors.register(wrong)


def test_a_users_arguments_come_back_from_a_checkpoint_or_are_refused_when_it_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MODELS", dict(priors.MODELS))
    monkeypatch.setattr(checkpoint, "MODELS", base.MODELS)

    @priors.register
    class Passes(priors.PointFlow):
        def __init__(self, pairs=((1, 2), (3, 4)), **rest):
            assert pairs == ((1, 2), (3, 4))
            super().__init__(**rest)

    flow = Passes(couplings=2, width=4)
    again = priors.load(priors.save(flow, tmp_path / "passes.safetensors"))
    assert again.config == flow.config == {"pairs": [[1, 2], [3, 4]], "couplings": 2, "width": 4}

    class Holds(priors.PointFlow):
        def __init__(self, held):
            super().__init__(2, 4)

    flow = Holds({"a": 1})
    priors.register(Holds)
    for make in (lambda: priors.save(flow, tmp_path / "holds.safetensors"), lambda: Holds({"a": 1})):
        with pytest.raises(ValueError, match="held: got dict for a Holds; allowed: what a checkpoint holds"):
            make()
    with pytest.raises(ValueError, match="held: got dtype for a Holds"):
        Holds(torch.float64)

    class Nameless(priors.PointFlow):
        def __init__(self, *sizes):
            super().__init__(*sizes)

    with pytest.raises(
        ValueError, match=r"kind: got Nameless with the argument \*sizes; allowed: arguments with names"
    ):
        priors.register(Nameless)


def test_half_precision_is_stored_only_where_it_holds_the_weights(tmp_path):
    model = tiny(dtype=torch.float32)
    small = priors.save(model, tmp_path / "half.safetensors", half=True)
    assert {t.dtype for t in read_tensors(small)[0].values()} == {torch.float16, torch.bool}
    assert priors.load(small, dtype=torch.float64).like.dtype == torch.float64
    with pytest.raises(ValueError, match=r"dtype: got torch.float16; allowed: torch.float32, torch.float64"):
        priors.load(small, dtype=torch.float16)
    with torch.no_grad():
        model.like.fill_(1e6)
    with pytest.raises(ValueError, match=r"norm.bias: got 4 NaN or infinite"):
        priors.save(model, small, half=True)
    assert priors.load(small)  # the old one is whole


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path):
    path = tmp_path / "shared.safetensors"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_again_and_again, args=(path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert priors.load(path).config["seed"] in (1, 2)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _write_again_and_again(path, seed):
    torch.set_num_threads(1)
    for _ in range(12):
        priors.save(tiny(seed=seed, dtype=torch.float32), path)


def test_a_prior_is_loaded_on_the_device_asked_for(stored):
    assert priors.load(stored, device="meta").like.device.type == "meta"


# --- writing in one step


def _killed_while_writing(path, moment):
    """Save other weights to `path`, and die without warning at `moment`."""

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "before the file is complete":
        import companion.priors.checkpoint as module

        def half(tensors, part, metadata):
            save_file(tensors, part, metadata=metadata)
            with open(part, "r+b") as handle:
                handle.truncate(os.path.getsize(part) // 2)
            die()

        module.save_file = half
    elif moment == "before it is on the disk":
        os.fsync = die
    else:
        os.replace = die
    priors.save(tiny(seed=7, dtype=torch.float32), path)


@pytest.mark.parametrize("moment", ["before the file is complete", "before it is on the disk", "before it is renamed"])
def test_a_kill_while_writing_leaves_the_old_file_whole(stored, moment):
    before = stored.read_bytes()
    child = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(stored, moment))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert stored.read_bytes() == before and priors.load(stored).card == CARD
    other = tiny(seed=7, dtype=torch.float32)
    priors.save(other, stored)  # the left-over part is in nobody's way
    x = rand(1, 1, 4, 4, dtype=torch.float32)
    assert torch.equal(priors.load(stored).log_prob(x), other.log_prob(x))
    assert [p.name for p in stored.parent.iterdir() if p.suffix != ".part"] == [stored.name]


def test_files_are_the_same_byte_for_byte_when_their_content_is(tmp_path):
    first = priors.save(tiny(), tmp_path / "a.safetensors", CARD).read_bytes()
    assert priors.save(tiny(), tmp_path / "b.safetensors", CARD).read_bytes() == first


def test_stored_checkpoints_stay_below_60_megabytes_and_trained_ones_below_6():
    sizes = {path.stem: path.stat().st_size for path in (_support.store() / "checkpoints").glob("*.safetensors")}
    trained = sizes.keys() & RECIPES.keys()
    assert len(trained) >= 12 and max(sizes[name] for name in trained) < 6e6
    assert sum(sizes.values()) < 60e6
