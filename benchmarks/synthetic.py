"""Draws pictures of textured shapes that cover one another before cluttered backgrounds, with COCO annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pyquant import console
from pyquant.masks import to_coco
from pyquant.storage import write_whole

SHAPES = ("disc", "box", "triangle", "star")
TEXTURES = ("striped", "dotted")
CLASSES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)  # category ids count from 1
SIDES = (160, 192, 224)  # pixels of a picture's height and width
OBJECTS = (2, 6)  # that are tried, from and below
EXTENT = (24, 112)  # pixels from side to side of an object, before it is rotated
PERIOD = (7.0, 11.0)  # pixels of a texture
LEAST_VISIBLE = 0.4  # share of an object in the picture that others leave visible, else they are not drawn
LEAST_PIXELS = 100  # of an object in the picture, else it is not drawn
CONTRAST = 110  # least difference of the two colours of a texture, in one channel
QUALITY = 92  # of JPEG
PICTURES, ANNOTATIONS = "pictures", "annotations.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a set is made from; the same description gives the same pictures."""

    split: str
    pictures: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A picture and what is visible of its objects."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    labels: list[int]  # from 1
    masks: list[NDArray[np.bool_]]  # of each object [H, W]


def write_set(folder: Path, description: Description) -> None:
    """Write `folder/pictures/*.jpg` and `folder/annotations.json`, unless they are there already."""
    path = folder / ANNOTATIONS
    info = asdict(description)
    if path.exists() and json.loads(path.read_text())["info"] == info:
        return
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in console.track(range(1, description.pictures + 1), f"drawing pictures of '{description.split}'"):
        drawn = draw_picture(np.random.default_rng([description.seed, *description.split.encode(), number]))
        height, width = drawn.pixels.shape[:2]
        name = f"{number:05}.jpg"
        data = BytesIO()
        Image.fromarray(drawn.pixels).save(data, "JPEG", quality=QUALITY)
        (folder / PICTURES / name).write_bytes(data.getvalue())
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, mask in zip(drawn.labels, drawn.masks, strict=True):
            left, top, right, bottom = extent(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": to_coco(mask),
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_whole(path, json.dumps(content).encode())


def extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a mask that is not empty; its last pixel is before right and bottom."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def draw_picture(rng: np.random.Generator) -> Drawn:
    """Return a picture: a background, and objects drawn one over the other as long as each stays visible."""
    height, width = (int(side) for side in rng.choice(SIDES, 2))
    pixels = _background(rng, height, width)
    labels: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    sizes: list[int] = []  # pixels of each object before others cover it
    for _ in range(int(rng.integers(*OBJECTS))):
        label = int(rng.integers(len(CLASSES)))
        mask, colours = _object(rng, height, width, *divmod(label, len(TEXTURES)))
        left = [~mask & other for other in masks]
        whole = mask.sum() >= LEAST_PIXELS and all(
            part.sum() >= LEAST_VISIBLE * size for part, size in zip(left, sizes, strict=True)
        )
        if whole:
            pixels[mask] = colours[mask]
            labels.append(label + 1)
            masks = [*left, mask]
            sizes.append(int(mask.sum()))
    light = 1 + 0.25 * _smooth(rng, height, width, 3)[..., :1]
    noisy = pixels * light + rng.normal(0, 5, pixels.shape)
    return Drawn(pixels=noisy.clip(0, 255).astype(np.uint8), labels=labels, masks=masks)


def _smooth(rng: np.random.Generator, height: int, width: int, cells: int) -> NDArray[np.float32]:
    """Return smooth noise `[H, W, 3]` between -1 and 1."""
    coarse = rng.uniform(-1, 1, (3, cells, cells)).astype(np.float32)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Return pixels 0..255: patches of colour, with lines and specks that are no objects."""
    noise = 60 * _smooth(rng, height, width, 4) + 30 * _smooth(rng, height, width, 24)
    pixels = (rng.uniform(60, 190, 3) + noise).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 14))):
        ends = [tuple(point) for point in rng.uniform(0, 1, (2, 2)) * (width, height)]
        draw.line(ends, fill=_colour(rng), width=int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(5, 25))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(1, 5)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rng))
    return np.asarray(image).astype(np.float32)


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(level) for level in rng.integers(256, size=3))


def _object(
    rng: np.random.Generator, height: int, width: int, shape: int, texture: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Return the mask of an object anywhere in a picture, and its colours `[H, W, 3]`."""
    half = np.exp(rng.uniform(*np.log(EXTENT))) / 2 * np.array([1, rng.uniform(0.7, 1)])
    centre = rng.uniform(0.1, 0.9, 2) * (width, height)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x - centre[0], y - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    mask = _inside(SHAPES[shape], along / half[0], across / half[1])
    waves = [np.sin(2 * np.pi * (axis / rng.uniform(*PERIOD) + rng.uniform())) for axis in (along, across)]
    first = waves[0] > 0 if TEXTURES[texture] == "striped" else waves[0] * waves[1] > 0.25
    colours = rng.uniform(0, 255, (2, 3))
    while np.abs(colours[0] - colours[1]).max() < CONTRAST:
        colours = rng.uniform(0, 255, (2, 3))
    return mask, colours[first.astype(np.intp)].astype(np.float32)


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points of a plane lie in a shape that reaches from -1 to 1."""
    if shape == "disc":
        return u**2 + v**2 <= 1
    if shape == "box":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.85
    if shape == "triangle":
        return (v <= 0.8) & (np.abs(u) <= (v + 1) / 1.8)
    return np.hypot(u, v) <= 0.64 + 0.36 * np.cos(5 * np.arctan2(v, u))


def class_lines(names: Sequence[str] = CLASSES) -> str:
    """Return the text of a file of classes for `pyquant compress --classes`, the background first."""
    return "".join(f"{name.replace(' ', '_')} {name}\n" for name in ("background", *names))
