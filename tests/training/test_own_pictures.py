"""The README's example for a user's own pictures, as it stands there, on pictures of every kind."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from companion import cli, data, priors, training
from companion.training import recipes

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder "pictures" where the commands run: soft blobs of colour as JPEG, PNG, TIFF and WebP files."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    source = np.random.default_rng(0)

    def blobs(channels):
        small = source.integers(0, 256, (9, 12, channels), dtype=np.uint8)
        return Image.fromarray(small).resize((180, 160), Image.Resampling.BICUBIC)

    turned = Image.Exif()
    turned[274] = 6  # a camera held upright
    blobs(3).save(folder / "a.jpg", exif=turned, quality=95)
    blobs(3).save(folder / "b.png")
    grey = np.asarray(blobs(3).convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(folder / "c.png")
    blobs(3).save(folder / "more" / "d.tif")
    blobs(3).save(folder / "more" / "e.webp")
    blobs(4).save(folder / "more" / "f.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.slow
def test_the_documented_example_trains_recovers_and_compares(pictures, capsys):
    section = README.partition("## Your own pictures\n")[2].partition("\n## ")[0]
    (command,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    program, *arguments = shlex.split(command)
    assert program == "companion" and cli.main(arguments) == 0
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    found = dict(re.findall(r"^(.*): PSNR (.*) dB$", capsys.readouterr().out, re.MULTILINE))
    assert list(found) == ["own flow", "shipped flow", "total variation"]
    # a flow of 20 steps knows little; what the others know holds for soft pictures, too
    nothing = -10 * ((data.folder("pictures", "test")[:4] - 0.5) ** 2).mean((1, 2, 3)).log10().mean()
    assert min(float(found[method]) for method in list(found)[1:]) > nothing + 2
    card = priors.load("runs/glow-photos32-pictures.safetensors").card
    trained = len(data.folder("pictures"))
    assert card["data"] == f"the folder pictures, training split, {trained} images at 32×32 of 4 pictures"


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("glow-mnist", "mine", "pictures: got some for glow-mnist, a prior of grey images"),
        ("glow-photos32", None, "out: got none for a prior of other pictures"),
    ],
)
def test_a_prior_of_grey_images_and_the_books_own_store_are_refused(pictures, name, out, message):
    with pytest.raises(ValueError, match=message):
        training.train_recipe(name, "quick", out=out, pictures="pictures")


def test_the_checkpoint_has_the_folders_name_however_the_folder_is_written(pictures, monkeypatch):
    monkeypatch.setattr(recipes, "_store_gaussian", lambda folder, stem, splits, facts: (stem, facts["data"]))
    monkeypatch.chdir(pictures)
    for written in (".", "more/..", str(pictures)):
        stem, about = training.train_recipe("gaussian-photos32", "quick", out="../mine", pictures=written)
        assert stem == "gaussian-photos32-pictures"
        assert about.startswith("the folder pictures, training split")
