"""The look of every figure: sizes that a phone can read, a light ground for dark pages too, one colour a method."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

INK = "#1A1A1A"
GROUND = "#FFFFFF"
WIDTH = 4.8  # inches; the text is 11 points of them, so 11 pixels are left on a screen 360 pixels wide
DPI = 160  # pixels an inch in the file, which a page shows at 100, sharp on dense screens

# Chosen by search: contrast with the ground at least 4.5:1, because labels are written in them, and any two at least 15
# apart (CIE 1976) for full colour vision and for protanopia, deuteranopia and tritanopia (Machado et al. 2009).
_LOOKS = {  # colour, label and marker of each method
    "flow": ("#043D95", "Flow", "o"),
    "glow": ("#043D95", "Glow", "o"),
    "glow-map": ("#276CF7", "Glow, MAP", "P"),
    "realnvp": ("#276CF7", "RealNVP", "P"),
    "vae": ("#18845D", "VAE", "^"),
    "gan": ("#E12609", "GAN", "v"),
    "gaussian": ("#991A77", "Gaussian", "p"),
    "pca": ("#41005D", "PCA", "h"),
    "lasso-dct": ("#AA6238", "Lasso-DCT", "s"),
    "lasso-wavelet": ("#C318C4", "Lasso-wavelet", "D"),
    "tv": ("#004600", "TV", "<"),
    "bm3d": ("#794935", "BM3D", "X"),
    "pseudo-inverse": ("#545454", "Pseudo-inverse", "."),
    "none": ("#545454", "No prior", "."),
    "noisy": ("#6174A2", "Noisy", "."),
    "truth": ("#111111", "Truth", "*"),
}
COLOURS = {name: colour for name, (colour, _, _) in _LOOKS.items()}
LABELS = {name: label for name, (_, label, _) in _LOOKS.items()}
MARKERS = {name: marker for name, (_, _, marker) in _LOOKS.items()}

_RC: Any = {  # matplotlib types its keys as a list of literals
    "axes.edgecolor": INK,
    "axes.facecolor": GROUND,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=list(dict.fromkeys(COLOURS.values()))),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.dpi": 100,
    "figure.facecolor": GROUND,
    "figure.figsize": (WIDTH, 3.3),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": 11,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.8,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "savefig.dpi": DPI,
    "savefig.facecolor": GROUND,
    "text.color": INK,
    "xtick.color": INK,
    "xtick.labelsize": 10,
    "ytick.color": INK,
    "ytick.labelsize": 10,
}


@contextmanager
def style() -> Iterator[None]:
    """Context in which matplotlib draws in the book's style: ``with show.style(): fig, ax = show.figure(); ...``."""
    with mpl.rc_context(_RC):
        yield


def figure(width: float = WIDTH, height: float = 3.3, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Return a styled figure (inches) and its axes (an array of them for several), unknown to pyplot.

    A notebook therefore shows it once, through :func:`companion.show.display`, and never without its alt text.
    """
    with style():
        made = Figure(figsize=(width, height), layout="constrained")
        return made, made.subplots(rows, columns)
