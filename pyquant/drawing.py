"""Drawing on a picture what a detector found in it: masks in colours, boxes, names and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Told apart by most people whatever their colour vision (Okabe and Ito, 2008).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
MASK_SHARE = 0.5  # of a pixel's colour that is the mask's


def draw_detections(pixels: NDArray[np.uint8], found: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Image.Image:
    """Return a picture with what was found in it.

    Args:
        pixels: uint8 RGB `[H, W, 3]`.
        found: what `Model.detect` returned for it.
        names: what to write at each box, before its score.
    """
    blended = pixels.astype(np.float32)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
    # The best lie on top, so they are drawn last.
    order = range(len(names) - 1, -1, -1)
    for i in order:
        if "masks" in found:
            mask = found["masks"][i]
            blended[mask] = (1 - MASK_SHARE) * blended[mask] + MASK_SHARE * np.array(colours[i], np.float32)
    image = Image.fromarray(blended.round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    short = min(image.size)
    width, font = max(short // 200, 1), ImageFont.load_default(max(short // 40, 10))
    for i in order:
        left, top, right, bottom = found["boxes"][i].tolist()
        draw.rectangle((left, top, right, bottom), outline=colours[i], width=width)
        text = f"{names[i]} {found['scores'][i]:.2f}"
        # What would begin at the corner of a box and end outside of the picture is moved into it.
        across, down = draw.textbbox((0, 0), text, font=font)[2:]
        corner = (
            max(min(left + width, image.width - across - 2), 1),
            max(min(top + width, image.height - down - 2), 1),
        )
        x0, y0, x1, y1 = draw.textbbox(corner, text, font=font)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), fill=colours[i])
        draw.text(corner, text, fill=(0, 0, 0), font=font)
    return image
