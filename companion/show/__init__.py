"""Figures of the book: one look, one colour a method, alt text on every image, and sliders that need no kernel.

A chapter draws with :func:`pictures` (images beside the truth), :func:`curves` (of methods, read from a stored result
by :func:`series`), or its own code inside :func:`style`, and puts the figure on the page with :func:`display` (or
:func:`explore`), which ask for alt text; :func:`table` shows numbers.
"""

from companion.show.imaging import images, pictures
from companion.show.output import display, image_bytes
from companion.show.player import explore
from companion.show.plots import caption, curves, series
from companion.show.tables import table
from companion.show.theme import COLOURS, LABELS, MARKERS, figure, style
