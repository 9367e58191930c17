"""Where the files of each data set that is not embedded come from, and where they are found."""

import os
from dataclasses import dataclass
from pathlib import Path

from companion._support import sha256
from companion.data import _decode
from companion.data._download import download


@dataclass(frozen=True)
class Source:
    """Files of one data set."""

    folder: str  # within COMPANION_DATA and within the cache
    files: dict[str, str]  # sha256 by file name
    mirrors: tuple[str, ...]  # public folders, each ending in "/"; empty if there is none
    embedded: str  # the embedded set to use instead
    make: str = ""  # how a user makes the files, where nobody offers them in this layout


SOURCES = {
    "mnist": Source(
        "mnist",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        "digits",
    ),
    "fashion-mnist": Source(
        "fashion-mnist",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        "digits",
    ),
    "eurosat": Source(
        "eurosat64",
        {"eurosat_rgb_64.zip": "06bef5e5660687a059268f2986565de323a0905dbb58ec5aefe9648dbf8b7ee3"},
        (),
        "photos",
        "a zip of EuroSAT's 64x64 RGB images and index.csv with columns file, class, split",
    ),
    "flowers": Source(
        "flowers64",
        {"oxford102_64.zip": "873249e71c34ef643d5567bea08186ff4b95c8274579339ace1dabcf0a966645"},
        (),
        "photos",
        "a zip of Oxford 102's images, 64x64 RGB, and index.csv with columns file, class_1to102, asim2020_split",
    ),
    "photographs": Source(
        "imagenet1000",
        {"imagenet1000_160.zip": "6bc7b9e3bc9c936a07de9de7bfc06be2fd65cddf94a86c8a60a3d5fc8a5b6040"},
        (),
        "photos",
        "a zip of photographs whose shorter side is 160 pixels, and index.csv with columns file, split",
    ),
}


def given_folder(folder: str) -> Path | None:
    """The folder of a data set in the one that COMPANION_DATA names, or None without that variable."""
    root = os.environ.get("COMPANION_DATA")
    return Path(root).expanduser() / folder if root else None


def cache_folder(folder: str) -> Path:
    """The folder of a data set in the user's cache."""
    import pooch

    return Path(pooch.os_cache("companion")) / folder


def locate(name: str, file: str) -> Path:
    """Path of a whole file of data set `name`: in COMPANION_DATA, else in the user's cache, else downloaded to it.

    A file is whole if it has the known sha256 or, as the user's own, can be read from beginning to end. ValueError for
    a damaged one that cannot be downloaded anew; FileNotFoundError, with the embedded alternative, for one found
    nowhere.
    """
    source = SOURCES[name]
    given, cached = given_folder(source.folder), cache_folder(source.folder) / file
    found = given / file if given and (given / file).is_file() else cached
    if found.is_file():
        try:
            if sha256(found) != source.files[file]:
                _decode.check(found)
            return found
        except ValueError:
            if found != cached or not source.mirrors:
                raise
            cached.unlink()
    why = f"has no public address: make it ({source.make}; see data/README.md)"
    if source.mirrors:
        try:
            return download(cached, source.files[file], source.mirrors)
        except OSError as error:
            why = f"could not be downloaded ({error})"
    hint = "" if given else " or name a folder with this layout in COMPANION_DATA"
    raise FileNotFoundError(
        f"{name}: {file} is not on this machine and {why}; put it in {given or cached.parent}{hint}, "
        f'or use the embedded data set "{source.embedded}"'
    )
