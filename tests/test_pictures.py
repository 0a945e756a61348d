"""Pictures are found in folders and zip files, opened lazily, and matched with classes; bad ones are named."""

import contextlib
import os
import threading
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyquant.classes import ClassName
from pyquant.errors import InputError
from pyquant.pictures import (
    find_pictures,
    load_batch,
    match_folders,
    read_classes,
    read_picture,
    sample_pictures,
)
from pyquant.preprocessing import Preprocessing


def encoded(form: str = "PNG", seed: int = 0, size: tuple[int, int] = (12, 10), **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


FILES = {
    "bee/2.PNG": encoded(seed=1),
    "bee/10.png": encoded(seed=2),
    "ant/a.jpeg": encoded("JPEG", seed=3),
    "ant/b.webp": encoded("WEBP", seed=4),
    "ant/notes.txt": b"no picture",
    "ant/.hidden.png": encoded(),
    ".git/x.png": encoded(),
    "__MACOSX/ant/a.jpeg": b"what macOS adds",
    "top.bmp": encoded("BMP", seed=5),
}
FOUND = ["ant/a.jpeg", "ant/b.webp", "bee/10.png", "bee/2.PNG", "top.bmp"]


@pytest.fixture(params=["folder", "zip"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "zip":
        return zipped(tmp_path / "pictures.zip", FILES)
    for name, content in FILES.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("empty/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_pictures_are_found_and_sorted(data: Path) -> None:
    refs = find_pictures(data)
    assert [ref.name for ref in refs] == FOUND
    assert [ref.folder for ref in refs] == ["ant", "ant", "bee", "bee", ""]
    assert str(refs[0]) == f"{data}/ant/a.jpeg"


def test_pictures_open_as_rgb_bytes(data: Path) -> None:
    for ref in find_pictures(str(data)):
        pixels = ref.open()
        assert pixels.shape == (10, 12, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, Image.open(BytesIO(FILES[ref.name])).convert("RGB"))


def test_class_folder_is_the_immediate_parent(tmp_path: Path) -> None:
    refs = find_pictures(zipped(tmp_path / "a.zip", {"imagenet/val/n01/x.png": encoded()}))
    assert refs[0].folder == "n01"


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real" / "ant").mkdir(parents=True)
    (tmp_path / "real" / "ant" / "x.png").write_bytes(encoded())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "n01").symlink_to(tmp_path / "real" / "ant")
    (tmp_path / "real" / "ant" / "circle").symlink_to(tmp_path / "data")
    assert [ref.name for ref in find_pictures(tmp_path / "data")] == ["n01/x.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "missing: no such folder or zip file"),
        ("a.txt", b"text", "a.txt: not a zip file of pictures, or a damaged one"),
        ("cut.zip", "half", "cut.zip: not a zip file of pictures, or a damaged one"),
        ("none.zip", {"notes.txt": b""}, r"none.zip: no picture found; expected files that end in \.bmp, \.gif"),
        ("folder", {}, "folder: no picture found"),
        ("nul\0", None, "not usable|no such folder"),
    ],
)
def test_data_without_pictures(
    name: str, content: bytes | dict[str, bytes] | str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content == "half":
        whole = zipped(tmp_path / "whole.zip", FILES).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, dict):
        zipped(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_pictures(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture in a known format"),
        (b"no picture at all", "not a picture in a known format"),
        (encoded("TIFF"), "not a picture in a known format"),
        (encoded("PNG")[:-30], "the picture is corrupt"),
        (encoded("JPEG", size=(64, 64))[:-700], "the picture is corrupt"),
        (encoded("PNG")[:30] + b"\xff" * 8 + encoded("PNG")[38:], "x.png: (the picture is corrupt|not a picture)"),
    ],
)
def test_corrupt_pictures_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"ant/x.png": content})
    (ref,) = find_pictures(path)
    with pytest.raises(InputError, match=message) as caught:
        load_batch([ref], Preprocessing(resize=8, crop=(8, 8)))
    assert str(caught.value).startswith(f"{path}/ant/x.png: ")


def test_every_truncation_of_a_picture_is_an_error_of_ours_or_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM"):
        whole = encoded(form)
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            with contextlib.suppress(InputError):
                assert read_picture(path).shape == (10, 12, 3)


def test_damaged_zip_entries_are_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"ant/x.png": encoded()})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    (ref,) = find_pictures(path)
    with pytest.raises(InputError, match=r"a\.zip/ant/x\.png: cannot be read from the zip file"):
        ref.open()


def test_picture_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded())
    (ref,) = find_pictures(tmp_path)
    (tmp_path / "x.png").unlink()
    with pytest.raises(InputError, match=r"x\.png: no such file"):
        ref.open()


def test_picture_too_small_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded())
    with pytest.raises(InputError, match=r"x\.png: a picture of 10x12 pixels is smaller than the crop of 11x11"):
        load_batch(find_pictures(tmp_path), Preprocessing(resize=None, crop=(11, 11)))


def test_batches(data: Path) -> None:
    refs, preprocessing = find_pictures(data), Preprocessing(resize=9, crop=(8, 9))
    batch = load_batch(refs, preprocessing)
    assert batch.shape == (5, 3, 8, 9)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[3], preprocessing(refs[3].open()))
    assert load_batch([], preprocessing).shape == (0, 3, 8, 9)


def test_rotation_in_exif_data_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate a quarter turn to show"
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG", exif=exif))
    assert read_picture(tmp_path / "x.jpg").shape == (10, 12, 3)


def test_samples_follow_the_seed(data: Path) -> None:
    refs = find_pictures(data)
    assert sample_pictures(refs, 3, seed=1) == sample_pictures(refs, 4, seed=1)[:3]
    assert len(set(sample_pictures(refs, 4, seed=1))) == 4
    assert sorted(ref.name for ref in sample_pictures(refs, 99, seed=2)) == FOUND
    assert len({tuple(sample_pictures(refs, 5, seed=seed)) for seed in range(9)}) > 1
    with pytest.raises(InputError, match="expected at least 1 picture to use, got 0"):
        sample_pictures(refs, 0, seed=0)


def test_threads_may_share_a_zip_file(tmp_path: Path) -> None:
    files = {f"{index}.png": encoded(seed=index) for index in range(24)}
    refs = find_pictures(zipped(tmp_path / "a.zip", files))
    expected = [ref.open() for ref in refs]
    wrong: list[object] = []

    def read() -> None:
        try:
            for ref, pixels in zip(refs * 3, expected * 3, strict=True):
                np.testing.assert_array_equal(ref.open(), pixels)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_child_processes_may_share_a_zip_file(tmp_path: Path) -> None:
    files = {f"{index}.png": encoded(seed=index) for index in range(24)}
    refs = find_pictures(zipped(tmp_path / "a.zip", files))
    expected = [ref.open() for ref in refs]
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = int(
                    any((ref.open() != pixels).any() for ref, pixels in zip(refs * 5, expected * 5, strict=True))
                )
            finally:
                os._exit(code)
        children.append(child)
    for ref, pixels in zip(refs * 5, expected * 5, strict=True):
        np.testing.assert_array_equal(ref.open(), pixels)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def test_classes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffn01 ant\r\nn02\tgreat white  shark \r\nn03 crème".encode())
    assert read_classes(path) == (
        ClassName(folder="n01", name="ant"),
        ClassName(folder="n02", name="great white  shark"),
        ClassName(folder="n03", name="crème"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected a folder name, a blank and a name to show, got ''"),
        (b"n01 ant\n\nn02 bee\n", "line 2: expected a folder name"),
        (b"n01 ant\nn02\n", "line 2: expected a folder name, a blank and a name to show, got 'n02'"),
        (b"n01 ant\nn01 bee\n", "line 2: 'n01' is there already"),
        (b"n01 ant\nn02 b\0e\n", "line 2: has characters that cannot be shown"),
        (b"\n" * 9, "; and 4 more"),
        (b"\xff\xfe", "codec can't decode"),
    ],
)
def test_class_files_that_make_no_sense(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_classes(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_class_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_classes(tmp_path / "classes.txt")


NAMES = tuple(ClassName(folder=f"n{index:02}", name=f"thing {index}") for index in range(10))


def test_folders_are_matched_by_name() -> None:
    assert match_folders(["n07", "n02", "n07"], NAMES, 10) == {"n02": 2, "n07": 7}


def test_folders_in_sorted_order_where_there_are_no_names() -> None:
    assert match_folders(["b", "a", "c"], (), 3) == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(
    ("folders", "classes", "message"),
    [
        (
            ["n02", "zebra"],
            NAMES,
            "'zebra': no class of the network is called so; its 10 classes begin with 'n00', 'n01'",
        ),
        ([f"z{index}" for index in range(7)], NAMES, "'z0', .*, 'z4' and 2 more: no class of the network"),
        (["n02", ""], NAMES, "pictures lie outside of class folders"),
        (["a", "b"], (), "the file has no class names, and 2 class folders do not fit 10 outputs"),
    ],
)
def test_folders_that_do_not_match(folders: list[str], classes: tuple[ClassName, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_folders(folders, classes, 10)
