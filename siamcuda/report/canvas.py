"""What the pictures share: colours, panels, PNG bytes.

Figures are built without pyplot, so no window system and no global state of matplotlib is touched.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from siamcuda.report.drawing import to_png

__all__ = ["GENUINE", "IMPOSTOR", "NEUTRAL", "PROTOCOLS", "panels_of", "png_of"]

GENUINE, IMPOSTOR, NEUTRAL = "#1b7f5c", "#c8553d", "#44546a"
PROTOCOLS = ("#2f5d9b", "#d08a1d", "#7a4b94")


def panels_of(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels side by side."""
    width = 6.4 if panels == 1 else 4.6 * panels
    figure = Figure(figsize=(width, 4.2 if panels == 1 else 3.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png_of(figure: Figure, colours: int = 0) -> bytes:
    """PNG bytes, of so many colours where asked."""
    png = to_png(figure, dpi=130)
    if not colours:
        return png
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
