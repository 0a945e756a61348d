"""Pictures are resized, cropped and normalised as torchvision does it, bit for bit."""

import numpy as np
import pytest
from PIL import Image

from pyquant.errors import ConfigError, FormatError, InputError
from pyquant.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [
        (60, 80, 32, (28, 28)),
        (80, 61, 32, (32, 32)),
        (33, 47, 64, (48, 56)),  # enlarged
        (50, 50, 32, (31, 29)),
        (32, 43, 32, (28, 28)),  # the short side is right already
        (45, 37, None, (36, 37)),
        (99, 301, 24, (24, 24)),
    ],
)
def test_same_bits_as_torchvision(height: int, width: int, resize: int | None, crop: tuple[int, int]) -> None:
    pytest.importorskip("torchvision", reason="torchvision gives the expected pixels")
    from torchvision.transforms import functional

    image = picture(height, width)
    resized = image if resize is None else functional.resize(image, resize)
    # torchvision's own centre crop rounds halves to even, ours down.
    top, left = (resized.height - crop[0]) // 2, (resized.width - crop[1]) // 2
    cropped = functional.crop(resized, top, left, *crop)
    expected = functional.normalize(functional.to_tensor(cropped), IMAGENET_MEAN, IMAGENET_STD).numpy()
    np.testing.assert_array_equal(Preprocessing(resize=resize, crop=crop)(image), expected, strict=True)


def test_by_hand() -> None:
    image = picture(9, 12)
    preprocessing = Preprocessing(resize=5, crop=(4, 3), mean=(0.5, 0.25, 0.0), std=(0.5, 2.0, 1.0))
    resized = np.asarray(image.resize((6, 5), Image.Resampling.BILINEAR))  # 5 * 12 / 9 = 6.67: 6 columns
    expected = resized[0:4, 1:4].astype(np.float64) / 255
    expected = ((expected - (0.5, 0.25, 0.0)) / (0.5, 2.0, 1.0)).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocessing(image), expected, rtol=0, atol=2 * np.finfo(np.float32).eps)


def test_arrays_and_pictures_are_the_same() -> None:
    image, preprocessing = picture(20, 30), Preprocessing(resize=16, crop=(16, 16))
    result = preprocessing(image)
    assert result.dtype == np.float32
    assert result.shape == (3, 16, 16)
    np.testing.assert_array_equal(preprocessing(np.asarray(image)), result)
    np.testing.assert_array_equal(preprocessing(np.asfortranarray(image)), result)
    grey = image.convert("L")
    np.testing.assert_array_equal(preprocessing(grey), preprocessing(grey.convert("RGB")))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((8, 8, 3), np.float32), r"float32 \[8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((8, 0, 3), np.uint8), r"\[8, 0, 3\]"),
        ("picture.jpg", r"<U11 \[\]"),
    ],
)
def test_what_is_no_picture(array: object, found: str) -> None:
    with pytest.raises(InputError, match=found):
        Preprocessing(resize=4, crop=(4, 4))(array)  # type: ignore[arg-type]


def test_picture_smaller_than_the_crop() -> None:
    with pytest.raises(InputError, match="a picture of 10x40 pixels is smaller than the crop of 16x16; resize"):
        Preprocessing(resize=None, crop=(16, 16))(picture(10, 40))
    with pytest.raises(InputError, match="a picture of 16x18 pixels is smaller than the crop of 16x32"):
        Preprocessing(resize=16, crop=(16, 32))(picture(32, 36))


def test_picture_too_narrow_to_be_resized() -> None:
    with pytest.raises(InputError, match="a picture of 1x60000 pixels is too narrow to be resized"):
        Preprocessing(resize=256, crop=(224, 224))(np.zeros((1, 60000, 3), np.uint8))


def test_usual_choices() -> None:
    assert Preprocessing.default_for((3, 224, 224)) == Preprocessing(resize=256, crop=(224, 224))
    assert Preprocessing.default_for((3, 64, 96)) == Preprocessing(resize=64, crop=(64, 96))
    assert Preprocessing.default_for((3, 64, 64), resize="none").resize is None
    other = Preprocessing.default_for((3, 8, 8), resize=9, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert (other.resize, other.mean, other.std) == (9, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"pictures have 3 channels .*, but the network takes 1"):
        Preprocessing.default_for((1, 8, 8))
    with pytest.raises(ConfigError, match="resize must be a number of pixels or 'none', got 'big'"):
        Preprocessing.default_for((3, 8, 8), resize="big")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 0}, "resize must be 1 to 65,536 pixels, got 0"),
        ({"resize": 7}, "a short side of 7 pixels is too small for a crop of 8x8; resize to 8 or more"),
        ({"crop": (8,)}, "crop must be a height and a width"),
        ({"crop": (8, 70000)}, "crop must be a height and a width"),
        ({"mean": (0.5, 0.5)}, r"mean must be three numbers \(red, green, blue\), got \(0.5, 0.5\)"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be three positive numbers"),
        ({"std": (0.5, 0.5, float("inf"))}, "std must be three positive numbers"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing(**{"resize": 8, "crop": (8, 8), **options})


def test_json_round_trip() -> None:
    for preprocessing in (Preprocessing(resize=10, crop=(8, 9)), Preprocessing(resize=None, crop=(1, 1))):
        assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    with pytest.raises(FormatError, match="preprocessing: expected resize, crop, mean, std, got None"):
        Preprocessing.from_json(None)
