"""Putting a figure on the page as an <img> with alt text, the same in Jupyter and in the static book."""

import base64
import io
import re
from html import escape

import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display as ipython_display
from matplotlib.figure import Figure

from companion.show.theme import DPI, GROUND

CSS_DPI = 100


def text(name: str, value: object) -> str:
    """Return a text that is not blank; else raise ValueError naming the argument."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: got {value!r}; allowed: a text that is not blank")
    return " ".join(value.split())


def image_bytes(fig: Figure) -> bytes:
    """Return the figure as a lossless WebP file, about half as large as a PNG, and let pyplot forget it."""
    if not isinstance(fig, Figure):
        raise ValueError(f"fig: got {type(fig).__name__}; allowed: a matplotlib Figure")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="webp", dpi=DPI, pil_kwargs={"lossless": True})
    plt.close(fig)
    return buffer.getvalue()


def image_tag(fig: Figure, alt: str, attributes: str = "") -> str:
    """Return an <img> that carries the figure in itself, of which a page shows 100 pixels an inch.

    A page that takes the image out into a file finds it marked for lazy loading, with the size to keep free for it.
    """
    source = f"data:image/webp;base64,{base64.b64encode(image_bytes(fig)).decode()}"
    width, height = (round(side * CSS_DPI) for side in fig.get_size_inches())
    look = f"width:{width}px;max-width:100%;height:auto;box-sizing:border-box;padding:0;background:{GROUND}"
    # The class keeps the book's dark theme from changing the colours, which are what some figures are about.
    named = f'class="dark-light" alt="{escape(alt)}" width="{width}" height="{height}" loading="lazy"'
    return f'<img src="{source}" {named} style="{look}"{attributes}>'


def figure_html(kind: str, body: str, caption: str, anchor: str | None, look: str = "") -> str:
    """Return a <figure class="companion-kind"> with its caption, and the anchor as the id that links lead to.

    Raises ValueError for an anchor that is not lower-case letters, digits and hyphens.
    """
    if anchor is not None and not re.fullmatch(r"[a-z][a-z0-9-]*", anchor):
        raise ValueError(f"anchor: got {anchor!r}; allowed: lower-case letters, digits and hyphens, a letter first")
    named = f' id="{anchor}"' if anchor else ""
    beneath = f'<figcaption style="color:inherit">{escape(caption)}</figcaption>' if caption.strip() else ""
    return f'<figure class="companion-{kind}"{named}{look}>{body}{beneath}</figure>'


def emit(bundle: dict[str, object]) -> None:
    """Show a bundle of mime types in a notebook; elsewhere print its text/plain."""
    if InteractiveShell.initialized():
        ipython_display(bundle, raw=True)
    else:
        print(bundle["text/plain"])


def display(fig: Figure, *, alt: str, caption: str = "", anchor: str | None = None) -> None:
    """Show a matplotlib figure with its alt text and, beneath it, its caption; pyplot forgets it, lest it show twice.

    `alt` says what a person who cannot see the figure needs to know; `caption` first what is shown, then what to see;
    `anchor` is the name by which the page's text can link to it (``#anchor``), unique in the book. ValueError for a
    blank alt text or one that repeats the caption, or for something that is no figure.
    """
    alt = text("alt", alt)
    if alt == " ".join(caption.split()):
        raise ValueError("alt: got the caption; allowed: a text of its own, for those who cannot see the figure")
    html = figure_html("figure", image_tag(fig, alt), caption, anchor, ' style="margin:0;text-align:center"')
    emit({"text/html": html, "text/plain": f"Figure: {alt}"})
