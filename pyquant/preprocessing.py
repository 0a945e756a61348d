"""How a picture becomes a network's input: short side, centre crop, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pyquant.errors import ConfigError, FormatError, InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 65536
MAX_NUMBER = 1e30  # what a mean or a standard deviation stays below, so that float32 holds it
MAX_RESIZED_PIXELS = 1 << 27  # a picture of 1 x 50,000 pixels would become gigabytes when its short side is resized


@dataclass(frozen=True, kw_only=True)  # no slots: `_table` is computed once and kept
class Preprocessing:
    """Resize the short side (bilinear, antialiased), take the centre, and normalise pixels in 0..1 per channel.

    The result equals torchvision's `Resize`, a centre crop, `ToTensor` and `Normalize` on a PIL picture, bit for bit,
    save that the crop begins at floor((size - crop) / 2), where torchvision rounds halves to even.
    """

    resize: int | None  # pixels of the short side before the crop; None: pictures keep their size
    crop: tuple[int, int]  # height, width in pixels
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not _are_numbers(self.crop, 2) or not all(_is_side(side) for side in self.crop):
            raise ConfigError(f"crop must be a height and a width of 1 to {MAX_SIDE:,} pixels, got {self.crop!r}")
        if self.resize is not None and not _is_side(self.resize):
            raise ConfigError(f"resize must be 1 to {MAX_SIDE:,} pixels, got {self.resize!r}")
        if self.resize is not None and self.resize < min(self.crop):
            raise ConfigError(
                f"a short side of {self.resize} pixels is too small for a crop of {_by(self.crop)}; "
                f"resize to {min(self.crop)} or more"
            )
        normalised_levels(self.mean, self.std)

    @classmethod
    def default_for(
        cls,
        input_shape: tuple[int, int, int],
        *,
        resize: int | str | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> Preprocessing:
        """Return the preprocessing of a network with inputs `[C, H, W]` = `input_shape`.

        `resize` is the short side before the crop, "none" to keep pictures as they are, or None for the usual choice:
        256 for inputs of height 224, else the height.

        Raises:
            ConfigError: the network does not take three channels, or an option makes no sense.
        """
        channels, height, width = input_shape
        if channels != 3:
            raise ConfigError(f"pictures have 3 channels (red, green, blue), but the network takes {channels}")
        if isinstance(resize, str) and resize != "none":
            raise ConfigError(f"resize must be a number of pixels or 'none', got '{resize}'")
        if resize is None:
            resize = 256 if height == 224 else height
        short = None if isinstance(resize, str) else resize
        return cls(resize=short, crop=(height, width), mean=mean, std=std)

    def __call__(self, picture: NDArray[np.uint8] | Image.Image) -> NDArray[np.float32]:
        """Return the network's input, float32 `[3, H, W]`, from RGB pixels `[H, W, 3]` or a PIL picture.

        Raises:
            InputError: the array is not uint8 `[H, W, 3]`, or the picture is smaller than the crop.
        """
        image = _as_image(picture)
        if self.resize is not None:
            image = _resize_short_side(image, self.resize)
        (height, width), (crop_height, crop_width) = (image.height, image.width), self.crop
        if height < crop_height or width < crop_width:
            raise InputError(
                f"a picture of {_by((height, width))} pixels is smaller than the crop of {_by(self.crop)}; "
                f"resize the short side to {max(self.crop)} or more"
            )
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        pixels = np.asarray(image.crop((left, top, left + crop_width, top + crop_height)))
        return np.stack([self._table[channel][pixels[:, :, channel]] for channel in range(3)])

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        return normalised_levels(self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """Return the preprocessing as plain JSON values."""
        return {"resize": self.resize, "crop": list(self.crop), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Any) -> Preprocessing:
        """Return the preprocessing that `to_json` described.

        Raises:
            FormatError: an entry is unknown, missing or makes no sense.
        """
        keys = ("resize", "crop", "mean", "std")
        if not isinstance(value, Mapping) or set(value) != set(keys):
            found = sorted(value) if isinstance(value, Mapping) else value
            raise FormatError(f"preprocessing: expected {', '.join(keys)}, got {found!r}")
        try:
            return cls(
                resize=value["resize"],
                crop=_as_tuple(value["crop"]),
                mean=_as_tuple(value["mean"]),
                std=_as_tuple(value["std"]),
            )
        except ConfigError as error:
            raise FormatError(f"preprocessing: {error}") from error


def normalised_levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Return the normalised value of each of the 256 levels of each channel, `[3, 256]`, rounded in PyTorch's order.

    Raises:
        ConfigError: there are not three numbers each, or a standard deviation is not positive.
    """
    if not _are_numbers(mean, 3):
        raise ConfigError(f"mean must be three numbers (red, green, blue), got {mean!r}")
    if not _are_numbers(std, 3) or min(std) <= 0:
        raise ConfigError(f"std must be three positive numbers (red, green, blue), got {std!r}")
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return (levels - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIDE


def _are_numbers(values: Any, count: int) -> bool:
    """Tell whether `values` is a tuple of `count` finite numbers: options come from callers and from files."""
    numbers = isinstance(values, tuple) and all(type(value) in (int, float) for value in values)
    return numbers and len(values) == count and all(abs(value) < MAX_NUMBER for value in values)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_image(picture: NDArray[np.uint8] | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    pixels = np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise InputError(f"a picture is a uint8 array [H, W, 3] of red, green and blue, got {found}")
    if 0 in pixels.shape:
        raise InputError(f"a picture needs pixels, got an array of shape {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _resize_short_side(image: Image.Image, short: int) -> Image.Image:
    """Return the picture with a short side of `short` pixels; the long one is truncated, as torchvision does."""
    long = int(short * max(image.size) / min(image.size))
    if short * long > MAX_RESIZED_PIXELS:
        raise InputError(f"a picture of {_by((image.height, image.width))} pixels is too narrow to be resized")
    size = (short, long) if image.width <= image.height else (long, short)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def _by(size: tuple[int, int]) -> str:
    """Return a size, height first, as it is written in messages."""
    return f"{size[0]}x{size[1]}"
