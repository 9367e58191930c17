"""Putting a figure on the page as an <img> with alt text, the same in Jupyter and in the static book."""

import base64
import io
from html import escape

import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display as ipython_display
from matplotlib.figure import Figure

from companion._support import one_of
from companion.show.theme import DPI, GROUND

CSS_DPI = 100


def text(name: str, value: object) -> str:
    """Return a text that is not blank; else raise ValueError naming the argument."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: got {value!r}; allowed: a text that is not blank")
    return " ".join(value.split())


def image_bytes(fig: Figure, form: str = "png") -> bytes:
    """Return the figure as the bytes of a "png" or (lossless) "webp" file, and let pyplot forget it."""
    one_of("form", form, ("png", "webp"))
    if not isinstance(fig, Figure):
        raise ValueError(f"fig: got {type(fig).__name__}; allowed: a matplotlib Figure")
    buffer = io.BytesIO()
    # The time and version that matplotlib would write make equal figures differ.
    options = {"metadata": {"Software": None}} if form == "png" else {"pil_kwargs": {"lossless": True}}
    fig.savefig(buffer, format=form, dpi=DPI, **options)  # type: ignore[arg-type]
    plt.close(fig)
    return buffer.getvalue()


def image_tag(content: bytes, form: str, size: tuple[float, float], alt: str, attributes: str = "") -> str:
    """Return an <img> that carries the image in itself; `size` is in inches, of which a page shows 100 pixels each."""
    width, height = (round(side * CSS_DPI) for side in size)
    source = f"data:image/{form};base64,{base64.b64encode(content).decode()}"
    look = f"width:{width}px;max-width:100%;height:auto;box-sizing:border-box;padding:0;background:{GROUND}"
    # The class keeps the book's dark theme from changing the colours, which are what some figures are about.
    named = f'class="dark-light" alt="{escape(alt)}" width="{width}" height="{height}"'
    return f'<img src="{source}" {named} style="{look}"{attributes}>'


def figcaption(caption: str) -> str:
    """Return a <figcaption> in the colour of the text around it, or nothing for a blank caption."""
    return f'<figcaption style="color:inherit">{escape(caption)}</figcaption>' if caption.strip() else ""


def emit(bundle: dict[str, object]) -> None:
    """Show a bundle of mime types in a notebook; elsewhere print its text/plain."""
    if InteractiveShell.initialized():
        ipython_display(bundle, raw=True)
    else:
        print(bundle["text/plain"])


def display(fig: Figure, *, alt: str, caption: str = "") -> None:
    """Show a figure with its alt text and, beneath it, its caption.

    Args:
        fig: a matplotlib figure; pyplot forgets it, so that the notebook does not show it again.
        alt: what a person who cannot see the figure needs to know; not the caption again.
        caption: first what is shown, then what to see.

    Raises:
        ValueError: for a blank alt text or one that repeats the caption, or for something that is no figure.
    """
    alt = text("alt", alt)
    if alt == " ".join(caption.split()):
        raise ValueError("alt: got the caption; allowed: a text of its own, for those who cannot see the figure")
    tag = image_tag(image_bytes(fig), "png", tuple(fig.get_size_inches()), alt)
    look = "margin:0;text-align:center"
    html = f'<figure class="companion-figure" style="{look}">{tag}{figcaption(caption)}</figure>'
    emit({"text/html": html, "text/plain": f"Figure: {alt}"})
