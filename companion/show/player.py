"""The slider that needs no kernel: frames drawn beforehand, one shown at a time, by HTML alone."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from companion.show.output import emit, figure_html, image_tag, text

LIMIT = 1_000_000  # bytes of a player's HTML: several fit into a notebook of two megabytes

# Every frame is visible and the slider hidden until the script runs, so that without scripts nothing is lost.
_STYLE = """<style>
.companion-explore{max-width:100%;margin:0;text-align:center}
.companion-explore img[hidden],.companion-explore [hidden]{display:none!important}
.companion-explore label{display:flex;flex-wrap:wrap;align-items:center;gap:.25rem .75rem}
.companion-explore label{max-width:30rem;margin:.5rem auto;text-align:left}
.companion-explore input{flex:1 1 10rem;min-width:0;height:2.75rem;margin:0;cursor:pointer;accent-color:#3280fc}
.companion-explore input:focus-visible{outline:3px solid #3280fc;outline-offset:2px;border-radius:.25rem}
.companion-explore [data-value]{min-width:4rem;font-variant-numeric:tabular-nums;font-weight:bold}
</style>"""

# One script serves every player that is not yet ready, so that players need no ids and cannot clash.
_SCRIPT = """<script>
document.querySelectorAll(".companion-explore:not([data-ready])").forEach(function (box) {
  var frames = box.querySelectorAll("img"), input = box.querySelector("input");
  var value = box.querySelector("[data-value]");
  function turn() {
    frames.forEach(function (frame, index) { frame.hidden = index !== Number(input.value); });
    value.textContent = frames[input.value].dataset.text;
    input.setAttribute("aria-valuetext", value.textContent);
  }
  box.dataset.ready = "";
  box.querySelector("label").hidden = false;
  input.addEventListener("input", turn);
  turn();
});
</script>"""


def explore(
    frames: Callable[[Any], Figure] | Sequence[Figure],
    values: Sequence[Any] | Mapping[str, Any],
    *,
    label: str,
    alts: Callable[[Any], str] | Sequence[str],
    caption: str = "",
    start: int = 0,
    anchor: str | None = None,
) -> None:
    """Show a slider over `values` that swaps frames drawn now; the page needs neither kernel nor network.

    Parameters
    ----------
    frames
        Figures, or a function from a value to its figure, called once for each value. All of one size; give their axes
        the same limits, so that only what matters moves.
    values
        What the slider stops at; a mapping gives the text to show for each.
    label
        The quantity, with its unit.
    alts
        Alt texts, or a function from a value to its alt text.
    start
        Index of the value shown first.
    caption, anchor
        As for :func:`companion.show.display`.

    Raises ValueError for fewer than two values, for frames or alts that do not match them, for blank or equal alt
    texts, or for more than 1 MB in all.
    """
    named = dict(values) if isinstance(values, Mapping) else {_shown(value): value for value in values}
    if len(named) < 2 or len(named) != len(values):
        raise ValueError(f"values: got {list(values)!r}; allowed: at least two, all different")
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < len(named):
        raise ValueError(f"start: got {start!r}; allowed: 0 to {len(named) - 1}")
    figures = list(map(frames, named.values())) if callable(frames) else list(frames)
    given = list(map(alts, named.values())) if callable(alts) else list(alts)
    texts = [text(f"alts[{index}]", alt) for index, alt in enumerate(given)]
    label = text("label", label)
    for name, number in (("frames", len(figures)), ("alts", len(texts))):
        if number != len(named):
            raise ValueError(f"{name}: got {number}; allowed: {len(named)}, one for each value")
    if len(set(texts)) < len(texts):
        raise ValueError("alts: got the same text twice; allowed: one for each frame, that says what it shows")
    tags = []
    for shown, fig, alt in zip(named, figures, texts, strict=True):
        tags.append(image_tag(fig, alt, f' data-text="{escape(shown)}"'))
        size = tuple(fig.get_size_inches())
        if size != tuple(figures[0].get_size_inches()):
            raise ValueError(f"frames: got sizes {size} and others, in inches; allowed: one size for all")
    slider = (
        f"<label hidden><span>{escape(label)}</span>"
        f'<input type="range" min="0" max="{len(tags) - 1}" step="1" value="{start}" '
        f'autocomplete="off" aria-valuetext="{escape(list(named)[start])}">'
        '<span data-value aria-hidden="true"></span></label>'
    )
    html = figure_html("explore", f"{_STYLE}<div>{''.join(tags)}</div>{slider}", caption, anchor) + _SCRIPT
    if len(html) > LIMIT:
        total = f"{len(tags)} frames of {len(html) / 1e6:.1f} MB in all"
        raise ValueError(f"frames: got {total}; allowed: {LIMIT / 1e6:.0f} MB: fewer values or smaller figures")
    # No widget beside it: JupyterLab prefers one, and has no model for that of a notebook that was stored.
    emit({"text/html": html, "text/plain": f"Slider over {label}: {', '.join(named)}"})


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
