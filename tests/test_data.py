import gzip
import hashlib
import io
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from companion import data
from companion.data import _download, _sources

CONTENT = np.random.default_rng(0).bytes(300_000)
GREY = np.random.default_rng(1).integers(0, 256, (24, 28, 28), dtype=np.uint8)


@dataclass
class Server:
    """What the loopback server does: `cuts` answers end half way; a `status` other than 200 sends nothing."""

    content: bytes = CONTENT
    cuts: int = 0
    ranges_honoured: bool = True
    status: int = 200
    asked: list[str | None] = field(default_factory=list)
    address: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.asked.append(asked)
        if self.status != 200:
            request.send_error(self.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges_honoured else 0
        if start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        rest = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        if self.cuts:
            self.cuts -= 1
            rest = rest[: len(rest) // 2]
        request.wfile.write(rest)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.address = f"http://127.0.0.1:{http.server_port}/"
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's folders, or reaches another host."""
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(_download, "TIMEOUT", (0.5, 0.5))
    for name, source in _sources.SOURCES.items():
        if source.mirrors:
            monkeypatch.setitem(_sources.SOURCES, name, replace(source, mirrors=("http://127.0.0.1:9/",)))
    return tmp_path / "cache" / "companion"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(
        struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes(), mtime=0
    )


def write_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    for prefix, images in (("train", GREY), ("t10k", GREY[::-1])):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(24, dtype=np.uint8) % 10))


def write_zip(file: Path, header: str, row: str, side: int = 64) -> np.ndarray:
    """Zip of 30 train and 5 test images; `row` is formatted with the number k and the split."""
    file.parent.mkdir(parents=True)
    pixels = np.random.default_rng(2).integers(0, 256, (35, side, side, 3), dtype=np.uint8)
    with zipfile.ZipFile(file, "w") as archive:
        rows = [row.format(k=k, split="train" if k < 30 else "test") for k in range(35)]
        archive.writestr("index.csv", "\n".join([header, *rows]))
        for k in range(35):
            stream = io.BytesIO()
            Image.fromarray(pixels[k]).save(stream, "WEBP", lossless=True)
            archive.writestr(f"a/{k}.webp", stream.getvalue())
    return pixels


# --- files of the user


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("where", ["COMPANION_DATA", "cache"])
def test_idx_files_are_read_where_they_are(
    name: str, where: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = own_cache if where == "cache" else tmp_path / "given"
    write_mnist(root / name)
    if where == "COMPANION_DATA":
        monkeypatch.setenv("COMPANION_DATA", str(root))
    train, validation, test = (data.load(name, split) for split in ("train", "validation", "test"))
    assert np.array_equal(torch.cat([train.images, validation.images])[:, 0].numpy(), GREY)
    assert (len(train), len(validation)) == (22, 2) and validation.labels.tolist() == [2, 3]
    assert np.array_equal(test.images[:, 0].numpy(), GREY[::-1])
    assert [file.parent for file in data.fetch(name)] == [root / name] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "header", "row"),
    [
        ("eurosat", "eurosat64/eurosat_rgb_64.zip", "file,class,name,split", "a/{k}.webp,{k},x,{split}"),
        (
            "flowers",
            "flowers64/oxford102_64.zip",
            "file,class_1to102,udacity_split,asim2020_split,asim2020_shown",
            "a/{k}.webp,{k},train,{split},0",
        ),
    ],
)
def test_zips_are_split_by_their_index(
    name: str, file: str, header: str, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    pixels = write_zip(tmp_path / file, header, row)
    expected = {"validation": [9, 19, 29], "test": list(range(30, 35))}
    expected["train"] = [k for k in range(30) if k not in expected["validation"]]
    for split, numbers in expected.items():
        images = data.load(name, split)
        assert images.labels.tolist() == numbers
        assert np.array_equal(images.images.permute(0, 2, 3, 1).numpy(), pixels[numbers])
        half = data.load(name, split, 32)
        assert half.shape == (3, 32, 32)
        assert (half[:] - torch.nn.functional.avg_pool2d(images[:], 2)).abs().max() <= 0.51 / 255


def test_celeba_is_read_from_a_folder(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    (tmp_path / "celeba").mkdir()
    for number in (1, 2, 162771, 202599):
        face = np.zeros((218, 178, 3), np.uint8)
        face[20:198] = number % 251
        Image.fromarray(face).save(tmp_path / "celeba" / f"{number:06}.jpg", quality=95)
    assert [len(data.load("celeba", split)) for split in ("train", "validation", "test")] == [2, 1, 1]
    for size in (64, 32):
        train = data.load("celeba", "train", size)
        assert train.shape == (3, size, size) and train.labels is None
        assert (train.images.int() - torch.tensor([1, 2])[:, None, None, None]).abs().max() <= 1
    assert len(list((own_cache / "celeba").iterdir())) == 3
    (tmp_path / "celeba" / "162771.jpg").unlink()
    with pytest.raises(ValueError, match=r"got no file of split 'validation'; allowed: some of 162771.jpg"):
        data.load("celeba", "validation")
    (tmp_path / "celeba" / "me.jpg").touch()
    with pytest.raises(ValueError, match=r"got me.jpg; allowed"):
        data.load("celeba", "train")


@pytest.mark.parametrize(
    "damage", [b"", b"no gzip", idx(GREY)[:-500], gzip.compress(b"\0\0\x08\x03abc", mtime=0), idx(GREY[0])]
)
def test_damaged_idx_files_are_named(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(ValueError, match=r"mnist/train-images-idx3-ubyte.gz: got .*; allowed: ") as caught:
        data.load("mnist")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["text", "cut", "columns", "size"])
def test_damaged_zips_are_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    file = tmp_path / "eurosat64" / "eurosat_rgb_64.zip"
    columns = "file,class,name" if damage == "columns" else "file,class,name,split"
    write_zip(file, columns, "a/{k}.webp,0,x,{split}", side=60 if damage == "size" else 64)
    if damage in ("text", "cut"):
        file.write_bytes(b"no zip" if damage == "text" else file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"eurosat_rgb_64.zip: got .*; allowed: "):
        data.load("eurosat")


@pytest.mark.parametrize("where", ["COMPANION_DATA", "cache"])
@pytest.mark.parametrize("damage", [b"<!doctype html><html>Sign in</html>", idx(GREY)[:-500]])
def test_fetch_refuses_damaged_files_and_downloads_the_caches_anew(
    where: str, damage: bytes, server: "Server", tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, file = own_cache if where == "cache" else tmp_path / "given", "t10k-labels-idx1-ubyte.gz"
    if where == "COMPANION_DATA":
        monkeypatch.setenv("COMPANION_DATA", str(root))
    write_mnist(root / "mnist")
    whole = idx(np.arange(24, dtype=np.uint8))
    server.content = whole
    (root / "mnist" / file).write_bytes(damage)
    known = {**_sources.SOURCES["mnist"].files, file: sha256(whole)}
    monkeypatch.setitem(
        _sources.SOURCES, "mnist", replace(_sources.SOURCES["mnist"], files=known, mirrors=(server.address,))
    )
    if where == "cache":
        assert data.load("mnist", "test").labels.tolist() == list(range(24))
        assert (root / "mnist" / file).read_bytes() == whole and len(server.asked) == 1
    else:
        with pytest.raises(ValueError, match=rf"mnist/{file}: got a damaged file"):
            data.fetch("mnist")
        assert server.asked == []
    assert (root / "mnist" / file).exists()


@pytest.mark.parametrize("damage", [b"<html>", None])
def test_fetch_reads_zips_to_their_end(damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    file = tmp_path / "eurosat64" / "eurosat_rgb_64.zip"
    write_zip(file, "file,class,name,split", "a/{k}.webp,0,x,{split}")
    assert data.fetch("eurosat") == [file]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(damage or bytes(content))
    with pytest.raises(ValueError, match=r"eurosat_rgb_64.zip: got a damaged file"):
        data.fetch("eurosat")


def test_an_index_may_begin_with_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    write_zip(tmp_path / "eurosat64" / "eurosat_rgb_64.zip", "\ufefffile,class,split", "a/{k}.webp,{k},{split}")
    assert data.load("eurosat", "test").labels.tolist() == list(range(30, 35))


def test_a_truncated_face_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    (tmp_path / "celeba").mkdir()
    for number in (1, 2):
        face = np.random.default_rng(number).integers(0, 256, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(face).save(tmp_path / "celeba" / f"{number:06}.jpg")
    broken = tmp_path / "celeba" / "000002.jpg"
    broken.write_bytes(broken.read_bytes()[:5000])
    for read in (lambda: data.load("celeba"), lambda: data.fetch("celeba")):
        with pytest.raises(ValueError, match=r"000002.jpg: got a damaged file .*; allowed: a whole JPEG"):
            read()


# --- downloads


def test_a_cut_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = 2
    file = _download.download(tmp_path / "new" / "f.gz", sha256(CONTENT), (server.address,))
    assert file.read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.asked[1:]]
    assert server.asked[0] is None and len(starts) == 2
    assert 140_000 < starts[0] <= 150_000 and 210_000 < starts[1] <= 225_000
    assert list(file.parent.iterdir()) == [file]


def test_a_part_from_an_earlier_run_is_completed_by_another_mirror(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.gz.part").write_bytes(CONTENT[:1000])
    mirrors = ("http://127.0.0.1:9/", server.address)
    assert _download.download(tmp_path / "f.gz", sha256(CONTENT), mirrors).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize("part", [CONTENT, b"other" * 100, CONTENT + b"more"])
@pytest.mark.parametrize("ranges_honoured", [True, False])
def test_any_old_part_ends_in_the_right_file(
    server: Server, tmp_path: Path, part: bytes, ranges_honoured: bool
) -> None:
    server.ranges_honoured = ranges_honoured
    (tmp_path / "f.gz.part").write_bytes(part)
    file = _download.download(tmp_path / "f.gz", sha256(CONTENT), (server.address,))
    assert file.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [file]


def test_a_wrong_file_is_refused_and_not_kept(server: Server, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = idx(GREY)
    monkeypatch.setitem(
        _sources.SOURCES, "mnist", replace(_sources.SOURCES["mnist"], mirrors=(server.address, "http://127.0.0.1:9/"))
    )
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"its sha256 is not the expected one.*127.0.0.1:9/: no connection"):
            data.load("mnist")
        assert list((own_cache / "mnist").iterdir()) == []
    assert server.asked == [None, None]


def test_a_download_fills_the_cache_once(server: Server, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "train-images-idx3-ubyte.gz"
    source = replace(_sources.SOURCES["mnist"], files={file: sha256(CONTENT)}, mirrors=(server.address,))
    monkeypatch.setitem(_sources.SOURCES, "mnist", source)
    for _ in range(2):
        assert data.fetch("mnist") == [own_cache / "mnist" / file]
    assert len(server.asked) == 1


@pytest.mark.parametrize("failure", ["no network", "no file", "no answer", "read-only"])
def test_failure_names_the_file_the_folder_and_the_alternative(
    failure: str, server: Server, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.status = 404
    source = _sources.SOURCES["fashion-mnist"]
    if failure in ("no file", "read-only"):
        monkeypatch.setitem(_sources.SOURCES, "fashion-mnist", replace(source, mirrors=(server.address,)))
    if failure == "no answer":
        silent = threading.Event()
        monkeypatch.setattr(server, "answer", lambda request: silent.wait(2), raising=False)
        monkeypatch.setitem(_sources.SOURCES, "fashion-mnist", replace(source, mirrors=(server.address,)))
    if failure == "read-only":
        own_cache.parent.mkdir()
        own_cache.write_text("a file where the folder should be")
    with pytest.raises(FileNotFoundError) as caught:
        data.load("fashion-mnist", "test")
    message = str(caught.value)
    assert message.startswith("fashion-mnist: t10k-images-idx3-ubyte.gz is not on this machine and could not be")
    assert f"put it in {own_cache / 'fashion-mnist'}" in message and 'embedded data set "digits"' in message
    assert "COMPANION_DATA" in message and "\n" not in message
    assert {"no network": "no connection", "no file": "404", "no answer": "no connection", "read-only": ""}[
        failure
    ] in message


@pytest.mark.parametrize(("name", "file"), [("eurosat", "eurosat_rgb_64.zip"), ("flowers", "oxford102_64.zip")])
def test_sets_without_a_public_address_say_how_to_make_them(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"{name}: {file} .*index.csv.*put it in {tmp_path}.*photos"):
        data.fetch(name)
    with pytest.raises(FileNotFoundError, match=r"celeba: got no folder .*photos"):
        data.fetch("celeba")
    monkeypatch.delenv("COMPANION_DATA")
    with pytest.raises(FileNotFoundError, match="celeba: got no COMPANION_DATA"):
        data.load("celeba")


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar",), "name: got 'cifar'; allowed: digits, photos, .*, mnist"),
        (("kodak",), "split: got 'train'; allowed: test"),
        (("photos", "dev"), "split: got 'dev'; allowed: train, validation, test"),
        (("photos", "train", 48), "size: got 48; allowed: 32, 64"),
        (("eurosat", "train", 16), "size: got 16; allowed: 32, 64"),
        (("digits", "train", 0), "size: got 0; allowed: 8"),
    ],
)
def test_unknown_arguments_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load(*arguments)


def test_names_and_fetch() -> None:
    embedded = ("digits", "photos", "kodak", "china-coffee")
    assert data.names() == (*embedded, "photographs", "mnist", "fashion-mnist", "eurosat", "flowers", "celeba")
    assert all(data.fetch(name) == [] for name in embedded)
    with pytest.raises(ValueError, match="name: got 'x'; allowed: digits"):
        data.fetch("x")


def test_a_folder_is_pointed_to_its_function(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"name: got the folder {tmp_path}; .*data.folder\('{tmp_path}'\)"):
        data.load(str(tmp_path))


def test_import_is_light() -> None:
    heavy = {"skimage", "sklearn", "pooch", "requests", "PIL", "scipy"}
    code = f"import sys; import companion.data; print(sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
