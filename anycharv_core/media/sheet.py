"""Contact sheets: rows of pictures under column titles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .imaging import resize

GAP, TITLE, LINE = 6, 22, 17  # pixels; a title of one line, and each further one
PAPER, INK = (250, 250, 248), (40, 40, 40)


def upscale(picture: np.ndarray, zoom: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [zoom H, zoom W, 3], smoothly."""
    return resize(picture, (zoom * picture.shape[1], zoom * picture.shape[0]), Image.Resampling.BICUBIC)


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> Image.Image:
    """Rows of uint8 [H, W, 3] pictures, column by column under `titles`; a row is as high as its tallest. A title
    takes as many lines as it needs, and the room of empty titles that follow."""
    widths = [max(row[c].shape[1] for row in rows) for c in range(len(titles))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    lefts = list(accumulate((width + GAP for width in widths), initial=GAP))
    named = [column for column, title in enumerate(titles) if title]
    font = ImageFont.load_default(14)
    heads = []
    for column, after in zip_longest(named, named[1:], fillvalue=len(titles)):
        left, room = lefts[column], lefts[after] - GAP - lefts[column]
        heads.append((left + room // 2, _lines(titles[column], room, font)))
    top = TITLE + LINE * (max((len(lines) for _, lines in heads), default=1) - 1)
    page = Image.new("RGB", (lefts[-1], sum(heights) + GAP * (len(heights) + 1) + top), PAPER)
    draw = ImageDraw.Draw(page)
    for middle, lines in heads:
        draw.multiline_text((middle, top // 2 + 2), "\n".join(lines), INK, font, anchor="mm", align="center")
    for column, x in enumerate(lefts[:-1]):
        y = top + GAP
        for row, height in zip(rows, heights, strict=True):
            page.paste(Image.fromarray(row[column]), (x, y))
            y += height + GAP
    return page


def _lines(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A title broken between words into lines of up to `width` pixels, where its words are no longer."""
    first, *words = title.split()
    lines = [first]
    for word in words:
        longer = f"{lines[-1]} {word}"
        if font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
