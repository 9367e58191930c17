import base64
import io
import itertools
import re
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image
from scipy import optimize, stats

from companion import show
from companion.show import player as player_module
from companion.show.plots import mean_and_half, spread_out
from companion.show.theme import GROUND, INK

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    light, dark = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(rgb):
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = matrix @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_methods_stay_apart_for_every_vision(vision):
    seen = {colour: lab(np.array(VISION[vision]) @ linear(colour)) for colour in set(show.COLOURS.values())}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_colours_have_contrast_and_every_method_a_label_and_a_marker():
    assert all(contrast(colour, GROUND) >= 4.5 for colour in show.COLOURS.values())
    assert contrast(INK, GROUND) >= 7
    assert show.COLOURS.keys() == show.LABELS.keys() == show.MARKERS.keys()


def shot(fig):
    return np.asarray(Image.open(io.BytesIO(show.image_bytes(fig))).convert("RGB"))


def test_images_are_upscaled_without_smoothing_and_clipped():
    rng = np.random.default_rng(0)
    levels = rng.choice([0.0, 51.0, 153.0, 204.0], (3, 4, 4)) / 255
    fig = show.images([[torch.from_numpy(levels), levels * 2 - 0.1]], ["Truth", "Glow"], psnr=[[None, 21.04]])
    drawn = shot(fig)
    for ax, image in zip(fig.axes, (levels, np.clip(levels * 2 - 0.1, 0, 1)), strict=True):
        box = ax.get_window_extent().transformed(fig.dpi_scale_trans.inverted()).extents * 160
        left, right = int(box[0]) + 3, int(box[2]) - 3
        top, bottom = drawn.shape[0] - int(box[3]) + 3, drawn.shape[0] - int(box[1]) - 3
        colours = {tuple(pixel) for pixel in drawn[top:bottom, left:right].reshape(-1, 3).tolist()}
        expected = {tuple(pixel) for pixel in (image * 255).astype(np.uint8).reshape(3, -1).T.tolist()}
        assert colours == expected
    assert [ax.get_xlabel() for ax in fig.axes] == ["", "21.0 dB"]
    assert [ax.get_title() for ax in fig.axes] == ["Truth", "Glow"]


def test_bytes_are_levels_of_255_and_other_scales_are_refused():
    levels = np.arange(0, 256, 16, dtype=np.uint8).reshape(1, 4, 4)
    assert np.array_equal(shot(show.images([[levels]], ["a"])), shot(show.images([[levels / 255]], ["a"])))
    for wrong in (levels.astype(int), levels.astype(np.float32), levels / 255 - 4.5, levels > 9):
        with pytest.raises(ValueError, match=r"rows\[0\]\[0\]: got .* pixels from .*; allowed: floating-point ones in"):
            show.images([[wrong]], ["a"])


def test_pictures_are_labelled_with_their_psnr():
    truth = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bytes_of = (truth * 255).round().to(torch.uint8).numpy()
    noisy = truth + 0.1 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    where = torch.zeros(8, 8, dtype=torch.bool)
    where[:4] = True
    with pytest.raises(ValueError, match="estimates: got one named 'truth'"):
        show.pictures(truth, {"truth": noisy})
    columns = {"glow": noisy, "stored": bytes_of, "y": noisy}
    fig = show.pictures(truth, columns, first=2, where=where, bare=["y"])
    assert [ax.get_title() for ax in fig.axes[:4]] == ["Truth", "Glow", "stored", "y"]
    errors = ((noisy.clamp(0, 1) - truth)[:2, :, :4] ** 2).mean((1, 2, 3))
    scores = [f"{-10 * np.log10(float(error)):.1f} dB" for error in errors]
    assert [[ax.get_xlabel() for ax in fig.axes[4 * row :][:4]][::3] for row in (0, 1)] == [["", ""]] * 2
    assert [fig.axes[1].get_xlabel(), fig.axes[5].get_xlabel()] == scores
    assert len(fig.axes) == 8


def test_grey_images_span_black_to_white():
    fig = show.images([[np.full((1, 2, 2), 0.4)]], ["Truth"])
    assert (shot(fig).reshape(-1, 3) == round(0.4 * 255)).all(axis=1).any()


def test_long_titles_do_not_overlap_and_labels_stay_inside():
    names = ["Truth", "Pseudo-inverse", "Lasso-wavelet", "Lasso-DCT", "Glow, 300 evaluations"]
    fig = show.images([[np.zeros((3, 8, 8))] * 5] * 2, names, psnr=[[None, 10, 20, 30, 40]] * 2, row_labels=["a", "b"])
    fig.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in fig.axes[:5]]
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
    assert all(box.y1 <= fig.bbox.y1 for box in boxes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], ["Truth"]), "rows: got"),
        (([[np.zeros((3, 4, 4))]], ["Truth", "Glow"]), r"rows: got \[1\] images for 2 titles"),
        (([[np.zeros((4, 4))]], ["Truth"]), r"rows\[0\]\[0\]: got shape \(4, 4\)"),
        (([[np.full((3, 4, 4), np.nan)]], ["Truth"]), r"rows\[0\]\[0\]: got NaN"),
        (([[np.zeros((3, 4, 4))]], ["Truth"], [[1.0, 2.0]]), r"psnr: got \[2\]"),
        (([[np.zeros((3, 4, 4))]], ["Truth"], None, ["a", "b"]), "row_labels: got 2"),
    ],
)
def test_images_refuses_what_does_not_fit(arguments, says):
    rows, titles, psnr, row_labels = (*arguments, None, None)[:4]
    with pytest.raises(ValueError, match=says):
        show.images(rows, titles, psnr=psnr, row_labels=row_labels)


def test_bars_are_students_interval():
    values = np.random.default_rng(1).normal(size=(7, 3))
    mean, half, images = mean_and_half("glow", values, 3)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(0), scale=stats.sem(values))
    np.testing.assert_allclose([mean - half, mean + half], [low, high])
    assert images == 7


def test_curves_use_the_methods_colours_and_explain_their_bars():
    rng = np.random.default_rng(0)
    fig = show.curves(
        [0.1, 0.2, 0.4],
        {
            "glow": rng.normal(25, 1, (12, 3)),
            "lasso-dct": (np.array([20.0, 21, 22]), np.ones(3)),
            "noisy": [15, 15, 15],
        },
        xlabel="m / n",
        ylabel="PSNR (dB)",
        logx=True,
    )
    (ax,) = fig.axes
    colours = [line.get_color() for line in ax.lines if line.get_linestyle() == "-"]
    assert colours == [show.COLOURS[name] for name in ("glow", "lasso-dct", "noisy")]
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        "Glow": show.COLOURS["glow"],
        "Lasso-DCT": show.COLOURS["lasso-dct"],
        "Noisy": show.COLOURS["noisy"],
    }
    assert fig.get_supxlabel() == "bars: 95 % interval of the mean"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.1", "0.2", "0.4"]
    assert ax.get_legend() is None


def test_a_logarithmic_axis_labels_as_many_points_as_there_is_room_for():
    fig = show.curves([25, 50, 100, 200, 300, 400, 500, 750], {"glow": range(8)}, xlabel="m", ylabel="y", logx=True)
    fig.draw_without_rendering()
    labels = [tick for tick in fig.axes[0].get_xticklabels() if tick.get_text()]
    boxes = sorted((tick.get_window_extent() for tick in labels), key=lambda box: box.x0)
    assert len(labels) >= 5 and labels[0].get_text() == "25"
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_bars_name_the_number_of_images_where_it_is_known():
    values = {name: np.random.default_rng(0).normal(size=(12, 2)) for name in ("glow", "vae")}
    fig = show.curves([1, 2], values, xlabel="x", ylabel="y")
    assert fig.get_supxlabel() == "bars: 95 % interval of the mean over 12 images"
    assert show.curves([1, 2], {"glow": [1, 2]}, xlabel="x", ylabel="y").get_supxlabel() == ""


def test_labels_of_close_curves_neither_overlap_nor_leave_the_figure():
    methods = ("glow", "lasso-dct", "lasso-wavelet", "gan", "vae", "bm3d")
    fig = show.curves([1, 2], {name: [10, 20 + 0.01 * i] for i, name in enumerate(methods)}, xlabel="x", ylabel="y")
    fig.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in fig.axes[0].texts), key=lambda box: box.y0)
    assert all(one.y1 <= other.y0 + 1 for one, other in itertools.pairwise(boxes))
    assert all(fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 for box in boxes)


def ends(fig):
    """Where each label begins, and where the last point of its curve is, in pixels."""
    fig.draw_without_rendering()
    (ax,) = fig.axes
    curves = {line.get_color(): line.get_xydata() for line in ax.lines if line.get_marker() not in ("None", "_", "|")}
    found = {}
    for text in ax.texts:
        box, points = text.get_window_extent(), curves[text.get_color()]
        last = ax.transData.transform(points[np.isfinite(points[:, 1])][-1])
        found[text.get_text()] = (box.x0, (box.y0 + box.y1) / 2), tuple(last)
    return found


@pytest.mark.parametrize("logx", [False, True])
def test_a_label_stands_where_its_curve_ends(logx):
    methods = {"glow": [1, 2, np.nan, np.nan], "vae": [0, 0, 3, 4], "gan": [5, np.nan, np.nan, np.nan]}
    found = ends(show.curves([1, 2, 3, 4], methods, xlabel="x", ylabel="y", logx=logx))
    assert found.keys() == {"Glow", "VAE", "GAN"}
    for (left, middle), (x, y) in found.values():
        assert 0 < left - x < 40 and abs(middle - y) < 5


def test_labels_of_curves_that_end_together_early_do_not_overlap():
    methods = {"glow": [1, 2, np.nan], "gan": [1, 2.01, np.nan], "vae": [0, 0, 4]}
    fig = show.curves([1, 2, 3], methods, xlabel="x", ylabel="y")
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_categories_are_not_joined_and_stand_side_by_side():
    values = np.random.default_rng(0).normal(size=(6, 2))
    fig = show.curves(["sky", "text"], {"glow": values, "tv": values + 1}, xlabel="set", ylabel="y")
    glow, tv = (line for line in fig.axes[0].lines if line.get_marker() in ("o", "<"))
    assert glow.get_linestyle() == tv.get_linestyle() == "None"
    assert (glow.get_xdata() < tv.get_xdata()).all() and np.abs(glow.get_xdata() - [0, 1]).max() < 0.5
    assert [tick.get_text() for tick in fig.axes[0].get_xticklabels()] == ["sky", "text"]


def test_levels_are_dashed_lines_that_bear_their_names():
    fig = show.curves(
        [1, 2], {"glow": [1, 3]}, xlabel="x", ylabel="y", levels={"vae": 2.0, "glow": 2.5}, dashed=["glow"]
    )
    (ax,) = fig.axes
    lines = {(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_linestyle() != "None"}
    assert lines == {(show.COLOURS["glow"], "--"), (show.COLOURS["vae"], "--")}
    assert [text.get_text() for text in ax.texts].count("Glow") == 1 and len(ax.texts) == 2


def test_panels_are_drawn_on_axes_of_one_figure():
    fig, axes = show.figure(width=7, columns=2)
    x, y = [15, 31, 61, 123, 307, 614, 1229, 3072], {"gaussian": range(8)}
    for ax, title in zip(axes, ("left", "right"), strict=True):
        assert show.curves(x, y, xlabel="x", ylabel="y", logx=True, ax=ax, title=title) is fig
    fig.draw_without_rendering()
    (text,), right = axes[0].texts, axes[1].get_tightbbox()
    ticks = [tick.get_window_extent() for tick in axes[0].get_xticklabels() if tick.get_text()]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(ticks))
    assert text.get_window_extent().x1 <= right.x0 and [ax.get_title() for ax in axes] == ["left", "right"]


class Stored:
    """A result with named axes, as the experiments give it, with what `series` asks of it."""

    labels: ClassVar = {"m": [10, 20], "method": ["glow", "tv"], "draw": [0, 1, 2], "image": list(range(4))}
    values: ClassVar = np.random.default_rng(5).normal(size=(2, 2, 3, 4))

    def axes(self, name):
        assert name == "psnr"
        return self.labels

    def take(self, name, **at):
        index = tuple(self.labels[axis].index(at[axis]) if axis in at else slice(None) for axis in self.labels)
        return self.values[index]


def test_series_are_read_by_the_names_of_axes():
    x, lines = show.series(Stored(), "psnr", x="m", lines="method")
    assert x == [10, 20] and list(lines) == ["glow", "tv"]
    np.testing.assert_allclose(lines["tv"], Stored.values[:, 1].mean(1).T)
    x, lines = show.series(Stored(), "psnr", x="draw", lines="m", method="glow", only=[20])
    assert x == [0, 1, 2] and list(lines) == ["20"]
    np.testing.assert_allclose(lines["20"], Stored.values[1, 0].T)
    _, gain = show.series(Stored(), "psnr", x="m", lines="method", minus="tv")
    assert list(gain) == ["glow"]
    np.testing.assert_allclose(gain["glow"], (Stored.values[:, 0] - Stored.values[:, 1]).mean(1).T)
    _, lines = show.series(Stored(), "psnr", x="m", lines="method", photo=torch.tensor([3, 7, 3, 7]))
    expected = Stored.values[:, 0].mean(1).reshape(2, 2, 2).mean(1).T  # photographs 3, 7 of images 0 to 3
    np.testing.assert_allclose(lines["glow"], expected)


@pytest.mark.parametrize("seed", range(4))
def test_spread_out_moves_labels_least(seed):
    heights = np.sort(np.random.default_rng(seed).uniform(0, 1, 6))
    found = np.array(spread_out(heights, 0.15))
    assert (np.diff(found) >= 0.15 - 1e-12).all()
    gaps = {"type": "ineq", "fun": lambda moved: np.diff(moved) - 0.15}
    best = optimize.minimize(lambda moved: ((moved - heights) ** 2).sum(), heights, constraints=gaps, tol=1e-12)
    np.testing.assert_allclose(found, best.x, atol=1e-5)


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ({"magic": [1, 2]}, "method: got 'magic'; allowed: flow, glow"),
        ({"glow": [1, 2, 3]}, r"methods\['glow'\]: got shape \(3,\)"),
        ({"glow": np.zeros((1, 2))}, r"methods\['glow'\]: got shape \(1, 2\)"),
        ({"glow": ([1, 2], [1])}, r"methods\['glow'\]: got shapes"),
        ({}, "x, methods: got"),
    ],
)
def test_curves_refuses_what_does_not_fit(methods, says):
    with pytest.raises(ValueError, match=says):
        show.curves([1, 2], methods, xlabel="x", ylabel="y")


def test_new_names_bring_their_colour():
    fig = show.curves([1, 2], {"ours": [1, 2]}, xlabel="x", ylabel="y", colours={"ours": "#123456"})
    assert fig.axes[0].texts[0].get_color() == "#123456"


def stored(**settings):
    origin = SimpleNamespace(
        profile="laptop",
        seed=3,
        settings=settings,
        evaluations=12345,
        wall_seconds=600.0,
        device="GPU X",
        date="2020-01-02",
    )
    return SimpleNamespace(provenance=origin)


def test_caption_names_profile_images_seeds_and_budget():
    assert show.caption(stored(images=16)) == (
        "Stored run: profile laptop, 16 images, seed 3, 12,345 forward evaluations; 10 min on GPU X, 2020-01-02."
    )
    assert show.caption(stored(images=[4, 7], seeds=[0, 1, 2], budget="300 evaluations an image")) == (
        "Stored run: profile laptop, 2 images, seeds 0, 1, 2, budget 300 evaluations an image; "
        "10 min on GPU X, 2020-01-02."
    )
    assert "5 images" in show.caption(stored(images=16), images=5)
    assert "3 draws, budget 400 evaluations an image;" in show.caption(stored(seeds=3, budget=400))
    assert "1 draw," in show.caption(stored(seeds=1))


def test_style_leaves_no_trace():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    with show.style():
        assert mpl.rcParams["figure.facecolor"] == GROUND
    assert dict(mpl.rcParams) == before


def line(height=3.3, level=1.0):
    fig, ax = show.figure(height=height)
    ax.plot([0, 1], [0, level])
    return fig


@pytest.fixture
def notebook():
    shell = InteractiveShell.instance()
    yield shell
    InteractiveShell.clear_instance()


def test_display_emits_one_image_with_alt_text(notebook):
    with capture_output() as captured:
        show.display(line(), alt='A line\n from 0 to "1" & on', caption="A line: it rises < 2.")
    (output,) = captured.outputs
    assert set(output.data) == {"text/html", "text/plain"}
    html = output.data["text/html"]
    assert html.count("<img") == 1 and 'alt="A line from 0 to &quot;1&quot; &amp; on"' in html
    assert '<figcaption style="color:inherit">A line: it rises &lt; 2.</figcaption>' in html
    assert output.data["text/plain"] == 'Figure: A line from 0 to "1" & on'
    assert 'width="480" height="330" loading="lazy"' in html
    source = re.search(r'src="data:image/webp;base64,([^"]*)"', html)[1]
    image = Image.open(io.BytesIO(base64.b64decode(source)))
    assert image.size == (768, 528) and len(np.unique(np.asarray(image))) > 1
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_display_outside_a_notebook_prints_the_alt_text(capsys):
    show.display(line(), alt="A line")
    assert capsys.readouterr().out == "Figure: A line\n"


def test_display_closes_what_pyplot_holds(capsys):
    import matplotlib.pyplot as plt

    fig = plt.figure()
    show.display(fig, alt="Nothing")
    assert not plt.fignum_exists(fig.number)


def test_equal_figures_give_equal_bytes():
    assert show.image_bytes(line()) == show.image_bytes(line()) != show.image_bytes(line(level=0.5))


@pytest.mark.parametrize(
    ("fig", "alt", "says"),
    [(line, "  ", "alt: got '  '"), (line, None, "alt: got None"), (line, "the caption", "alt: got the caption")],
)
def test_display_refuses_figures_without_alt_text(fig, alt, says):
    with pytest.raises(ValueError, match=says):
        show.display(fig(), alt=alt, caption="the caption")


def test_display_refuses_what_is_no_figure():
    with pytest.raises(ValueError, match="fig: got list"):
        show.display([1], alt="a list")
    with pytest.raises(ValueError, match="anchor: got 'A b'; allowed: lower-case letters"):
        show.display(line(), alt="a line", anchor="A b")


def test_explore_draws_each_value_once_and_emits_html(notebook):
    drawn = []

    def draw(m):
        drawn.append(m)
        return line(level=m)

    with capture_output() as captured:
        show.explore(draw, {"5 %": 0.05, "10 %": 0.1}, label="m / n", alts=lambda m: f"Height {m}", caption="Rises.")
    assert drawn == [0.05, 0.1]
    (output,) = captured.outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert output.data["text/plain"] == "Slider over m / n: 5 %, 10 %"
    html = output.data["text/html"]
    assert re.findall(r'alt="([^"]*)"', html) == ["Height 0.05", "Height 0.1"]
    assert re.findall(r'data-text="([^"]*)"', html) == ["5 %", "10 %"]
    assert "http" not in re.sub(r'src="[^"]*"', "", html) and " id=" not in html


def test_explore_leaves_no_widget_behind_where_a_kernel_runs(notebook, monkeypatch):
    """JupyterLab shows a stored widget in place of the HTML, and has no model for it."""
    monkeypatch.setattr(notebook, "kernel", object(), raising=False)
    with capture_output() as captured:
        show.explore([line(level=1), line(level=2)], [1, 2], label="m", alts=["one", "two"], anchor="over-m")
    (output,) = captured.outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert output.data["text/html"].startswith('<figure class="companion-explore" id="over-m">')
    assert output.data["text/html"].count('loading="lazy"') == 2


def test_table_shows_means_with_intervals(notebook):
    values = np.array([[20.0, 30.0], [22.0, 31.0], [24.0, 35.0]])
    half = stats.sem(values) * stats.t.ppf(0.975, 2)
    with capture_output() as captured:
        show.table(
            [10, 20],
            {"glow": values, "noisy": [1.25, None], "by <hand>": ["a", "b"]},
            caption="PSNR (dB)",
            corner="m",
            anchor="psnr",
        )
    (output,) = captured.outputs
    html = output.data["text/html"]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]
    mean = [f"{a:.1f} ± {b:.1f}" for a, b in zip((22, 32), half, strict=True)]
    expected = [["m", "10", "20"], ["Glow", *mean], ["Noisy", "1.2", ""], ["by &lt;hand&gt;", "a", "b"]]
    assert rows == expected
    with capture_output() as again:  # a tensor says the same as an array
        show.table([10, 20], {"glow": torch.tensor(values)}, caption="PSNR (dB)")
    assert all(cell in again.outputs[0].data["text/plain"] for cell in mean)
    assert html.startswith('<figure class="companion-table" id="psnr">') and 'scope="row">Glow' in html
    assert output.data["text/plain"].splitlines()[0] == "PSNR (dB)" and mean[0] in output.data["text/plain"]
    for arguments, says in (
        (([1], {}), "rows: got none"),
        (([1], {"a": [1, 2]}), r"rows\['a'\]: got 2 values; allowed: 1"),
        (([1], {"group": {"a": [1, 2]}}), r"rows\['a'\]: got 2 values; allowed: 1"),
        (([1], {"group": {}}), r"rows\['group'\]: got none"),
    ):
        with pytest.raises(ValueError, match=says):
            show.table(*arguments, caption="x")


def test_rows_of_a_group_stand_under_its_name(notebook):
    rows = {"alone": [1, 2], "<first>": {"glow": [3, 4]}, "second": {"glow": [5, None], "other": ["a", 6]}}
    with capture_output() as captured:
        show.table([10, 20], rows, caption="PSNR (dB)")
    (output,) = captured.outputs
    html = output.data["text/html"]
    found = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html)]
    alone, first, second = ["alone", "1.0", "2.0"], ["Glow", "3.0", "4.0"], ["Glow", "5.0", ""]
    assert found == [["", "10", "20"], alone, ["&lt;first&gt;"], first, ["second"], second, ["other", "a", "6.0"]]
    assert html.count('<tr class="group"><th scope="rowgroup" colspan="3">') == 2
    plain = [line.split() for line in output.data["text/plain"].splitlines()]
    assert plain[3:5] == [["<first>"], ["Glow", "3.0", "4.0"]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"values": [1]}, "values: got"),
        ({"values": [1, 1]}, "values: got"),
        ({"values": [1, 2, 3]}, "alts: got 2; allowed: 3"),
        ({"frames": [line()]}, "frames: got 1; allowed: 2"),
        ({"alts": ["one"]}, "alts: got 1; allowed: 2"),
        ({"alts": ["one", " "]}, r"alts\[1\]: got ' '"),
        ({"alts": ["one", "one"]}, "alts: got the same text twice"),
        ({"label": ""}, "label: got ''"),
        ({"start": 2}, "start: got 2; allowed: 0 to 1"),
        ({"frames": lambda m: line(height=m)}, "frames: got sizes"),
        ({"frames": [1, 2]}, "fig: got int"),
    ],
)
def test_explore_refuses_what_does_not_fit(change, says):
    given = {"frames": lambda m: line(level=m), "values": [1, 2], "label": "m", "alts": ["one", "two"], **change}
    with pytest.raises(ValueError, match=says):
        show.explore(given.pop("frames"), given.pop("values"), **given)


@pytest.mark.slow
def test_ten_frames_of_images_stay_well_below_a_megabyte(monkeypatch):
    rng = np.random.default_rng(0)

    def draw(_):
        noise = rng.uniform(size=(3, 32, 32))
        return show.images([[noise] * 4] * 2, ["Truth", "Glow", "Lasso-DCT", "VAE"])

    shown = []
    monkeypatch.setattr(player_module, "emit", shown.append)
    show.explore(draw, range(10), label="m", alts=lambda i: f"frame {i}")
    assert len(shown[0]["text/html"]) < 500_000


def test_player_that_is_too_large_for_a_notebook_is_refused(monkeypatch):
    monkeypatch.setattr(player_module, "LIMIT", 10_000)
    with pytest.raises(ValueError, match=r"frames: got 2 frames of 0\.0 MB in all; allowed: 0 MB: fewer values"):
        show.explore([line(), line(level=2)], [1, 2], label="m", alts=["one", "two"])
