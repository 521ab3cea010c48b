"""Contact sheets: rows of pictures under column titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .imaging import resize

GAP, TITLE = 6, 22
PAPER, INK = (250, 250, 248), (40, 40, 40)


def upscale(picture: np.ndarray, zoom: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [zoom H, zoom W, 3], smoothly."""
    return resize(picture, (zoom * picture.shape[1], zoom * picture.shape[0]), Image.Resampling.BICUBIC)


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Rows of uint8 [H, W, 3] pictures, column by column under `titles`; a row is as high as its tallest."""
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(titles))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    page = Image.new(
        "RGB", (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1) + TITLE), PAPER
    )
    draw = ImageDraw.Draw(page)
    x = GAP
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        draw.text((x + width // 2, TITLE // 2 + 2), title, INK, ImageFont.load_default(14), anchor="mm")
        y = TITLE + GAP
        for row, height in zip(rows, heights, strict=True):
            page.paste(Image.fromarray(row[column]), (x, y))
            y += height + GAP
        x += width + GAP
    return page
