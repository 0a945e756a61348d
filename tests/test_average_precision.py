"""Average precision: known figures, COCO's tools called by hand, and one error for each kind of bad annotations."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import CLASSES, smooth_picture, tiny_detector, tiny_retinanet
from PIL import Image

from pyquant.average_precision import PRECISIONS, evaluate_detector
from pyquant.cli import main
from pyquant.errors import InputError, MissingDependencyError
from pyquant.file import ModelFile, write_model
from pyquant.masks import to_coco
from pyquant.runtime import Model, load

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
coco_eval = pytest.importorskip("faster_coco_eval")

SIZES = {"a.png": (90, 120), "b.png": (120, 90), "c.png": (64, 64)}
CATEGORIES = [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES)]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three pictures, and of three detectors, with masks and without, and of one stage."""
    from pyquant.capture import capture_detector

    folder = tmp_path_factory.mktemp("detector")
    (folder / "pictures" / "deep").mkdir(parents=True)
    for seed, (name, size) in enumerate(SIZES.items()):
        Image.fromarray(smooth_picture(*size, seed)).save(folder / "pictures" / "deep" / name)
    for name, module in (
        ("masks", tiny_detector(box_detections_per_img=20)),
        ("boxes", tiny_detector(masks=False, box_detections_per_img=20)),
        ("one_stage", tiny_retinanet()),
    ):
        network, preprocessing = capture_detector(module)
        write_model(folder / f"{name}.pqmodel", ModelFile(network=network, preprocessing=preprocessing))
    return folder


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder / "masks.pqmodel", threads=1)


@pytest.fixture
def content(folder: Path, model: Model) -> dict[str, Any]:
    """Annotations of all that the detector with masks finds."""
    annotations = []
    for image, name in enumerate(SIZES):
        (found,) = model.detect([folder / "pictures" / "deep" / name])
        for box, label, mask in zip(found["boxes"], found["labels"], found["masks"], strict=True):
            left, top, right, bottom = box.astype(float).tolist()
            if mask.any():
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": image,
                        "category_id": int(label),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": int(mask.sum()),
                        "segmentation": to_coco(mask),
                    }
                )
    images = [{"id": i, "file_name": name, "height": h, "width": w} for i, (name, (h, w)) in enumerate(SIZES.items())]
    assert len(annotations) > 20
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def measure(folder: Path, model: Model, tmp_path: Path) -> Callable[..., Any]:
    def run(content: Any, **options: Any) -> Any:
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return evaluate_detector(options.pop("model", model), folder / "pictures", path, **options)

    return run


def by_hand(content: dict[str, Any], model: Model, folder: Path) -> dict[str, list[float]]:
    """Return what faster-coco-eval gives when it reads the annotations, numbered from 1, and results as files."""
    truth = coco_eval.COCO()
    truth.dataset = json.loads(json.dumps(content))
    for annotation in truth.dataset["annotations"]:
        annotation |= {"id": annotation["id"] + 1, "iscrowd": 0}
    truth.createIndex()
    stats = {}
    for kind in ("bbox", "segm"):
        results = []
        for image, name in enumerate(SIZES):
            (found,) = model.detect([folder / "pictures" / "deep" / name])
            for i, (left, top, right, bottom) in enumerate(found["boxes"].astype(float).tolist()):
                result = {"image_id": image, "category_id": int(found["labels"][i]), "score": float(found["scores"][i])}
                what = {"bbox": [left, top, right - left, bottom - top]}
                results.append({**result, **(what if kind == "bbox" else {"segmentation": to_coco(found["masks"][i])})})
        evaluator = coco_eval.COCOeval_faster(truth, truth.loadRes(results), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
        stats[kind] = [float(share) for share in evaluator.stats[:6]]
    return stats


def test_what_is_found_is_there(measure: Callable[..., Any], content: dict[str, Any]) -> None:
    result = measure(content)
    assert set(result) == {"box", "mask", "n", "detections", "pictures_per_second"}
    assert result["n"] == len(SIZES)
    for kind in ("box", "mask"):
        assert tuple(result[kind]) == PRECISIONS
    assert result["mask"]["ap"] == pytest.approx(100)
    assert result["mask"]["ap_large"] == (pytest.approx(100) if any(a["area"] >= 96**2 for a in content["annotations"])
                                          else None)  # fmt: skip


def test_half_is_found(measure: Callable[..., Any], content: dict[str, Any]) -> None:
    # For each object one more in a corner that nothing touches: from a recall above one half on, precision is 0. COCO
    # takes the mean over 101 recalls.
    missed = [
        {**annotation, "bbox": [0.001 * i, 0, 0.001, 0.001], "segmentation": [[0, 0, 0.1, 0, 0, 0.1]]}
        for i, annotation in enumerate(content["annotations"])
    ]
    result = measure({**content, "annotations": content["annotations"] + missed})
    assert result["box"]["ap50"] == pytest.approx(100 * 51 / 101)
    assert result["mask"]["ap"] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize("library", ["faster_coco_eval", "pycocotools"])
def test_figures_are_those_of_the_library(
    library: str,
    measure: Callable[..., Any],
    content: dict[str, Any],
    model: Model,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if library == "pycocotools":
        pytest.importorskip("pycocotools")
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    rng = np.random.default_rng(0)
    for annotation in content["annotations"]:  # so that some are found well, some badly, and some not
        annotation["bbox"] = (np.array(annotation["bbox"]) * rng.uniform(0.8, 1.2, 4)).tolist()
        if rng.uniform() < 0.3:
            annotation["category_id"] = 1
    content["annotations"] = content["annotations"][::2]
    result = measure(content)
    expected = by_hand(content, model, folder)
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        shares = [-1 if share is None else share / 100 for share in result[kind].values()]
        np.testing.assert_allclose(shares, expected[name], atol=1e-9)
        assert 0 < shares[0] < 1


def test_nothing_is_found(measure: Callable[..., Any], content: dict[str, Any], folder: Path) -> None:
    from pyquant.capture import capture_detector

    network, preprocessing = capture_detector(tiny_detector(box_score_thresh=1.1))
    result = measure(content, model=Model(ModelFile(network=network, preprocessing=preprocessing), threads=1))
    assert (result["detections"], result["box"]["ap"], result["mask"]["ap"]) == (0, 0, 0)


def test_without_masks_masks_need_not_be_annotated(
    measure: Callable[..., Any], content: dict[str, Any], folder: Path
) -> None:
    content["annotations"] = [
        {key: value for key, value in annotation.items() if key != "segmentation"}
        for annotation in content["annotations"]
    ]
    result = measure(content, model=load(folder / "boxes.pqmodel", threads=1))
    assert result["mask"] is None
    assert result["box"]["ap"] is not None
    with pytest.raises(InputError, match=r"annotations\[0\] has no segmentation"):
        measure(content)


def test_of_one_stage(measure: Callable[..., Any], content: dict[str, Any], folder: Path) -> None:
    model = load(folder / "one_stage.pqmodel", threads=1)
    assert measure(content, model=model)["detections"] > 0
    content["annotations"][0]["category_id"] = CLASSES
    content["categories"] = [*CATEGORIES, {"id": CLASSES, "name": "toothbrush"}]
    with pytest.raises(InputError, match=rf"categories {CLASSES} are no classes"):
        measure(content, model=model)


def changed(key: str, index: int, **values: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content[key][index] |= values
        return content

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "no JSON", "not JSON"),
        (
            lambda content: "[]",
            "no COCO annotations; expected a JSON object with lists images, annotations, categories",
        ),
        (lambda content: {**content, "images": []}, "has no images"),
        (lambda content: {**content, "images": [3]}, r"images\[0\] is not an object"),
        (changed("images", 1, file_name="gone.png"), "there is no picture 'gone.png'"),
        (changed("images", 1, file_name=""), r"images\[1\] has no text as file_name"),
        (changed("images", 1, id=0), "images: the id 0 is there twice"),
        (changed("images", 1, id="1"), r"images\[1\] has no whole number as id"),
        (changed("images", 1, height=91), "deep/b.png: has 120 x 90 pixels; .* says 91 x 90 of image 1"),
        (changed("annotations", 2, image_id=77), r"annotations\[2\]: no entry of images has the id 77"),
        (changed("annotations", 2, category_id=77), r"annotations\[2\]: no entry of categories has the id 77"),
        (changed("annotations", 2, bbox=[1, 2, 3]), r"annotations\[2\] has no bbox"),
        (changed("annotations", 2, bbox=["1", 2, 3, 4]), r"annotations\[2\] has no bbox of four numbers"),
        (changed("annotations", 2, segmentation=[]), r"annotations\[2\] has a segmentation that is neither"),
        (changed("annotations", 2, segmentation=[[1, 2]]), r"annotations\[2\] has a segmentation that is neither"),
    ],
)
def test_bad_annotations(
    change: Callable[[Any], Any], message: str, measure: Callable[..., Any], content: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=message):
        measure(change(content))


def test_categories_must_be_labels(measure: Callable[..., Any], content: dict[str, Any]) -> None:
    content["categories"] = [*CATEGORIES, {"id": 90, "name": "toothbrush"}]
    measure(content)  # a category that is not annotated does no harm
    content["annotations"][0]["category_id"] = 90
    with pytest.raises(InputError, match=r"categories 90 are no classes .* labels, 1 to 4"):
        measure(content)


def test_names_may_have_folders_and_must_be_clear(
    content: dict[str, Any], folder: Path, model: Model, tmp_path: Path
) -> None:
    path, data = tmp_path / "annotations.json", tmp_path / "pictures.zip"
    with zipfile.ZipFile(data, "w") as archive:
        for place in ("one/deep", "other"):
            for name in SIZES:
                archive.write(folder / "pictures" / "deep" / name, f"{place}/{name}")
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"'a\.png' may be .*one/deep/a\.png or .*other/a\.png"):
        evaluate_detector(model, data, path)
    for image in content["images"]:
        image["file_name"] = f"deep/{image['file_name']}"
    path.write_text(json.dumps(content))
    result = evaluate_detector(model, data, path, limit=2)
    assert result["n"] == 2
    assert result["mask"]["ap"] == pytest.approx(100)


def test_no_library(measure: Callable[..., Any], content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("faster_coco_eval", "pycocotools", "pycocotools.coco"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pyquant-codec\[coco\]'"):
        measure(content)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_command(
    precision: str, content: dict[str, Any], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    arguments = ["eval", str(folder / "masks.pqmodel"), str(folder / "pictures"), "--annotations", str(path)]
    arguments += ["--precision", precision, "--threads", "2"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["mask"]["ap"] > (99 if precision == "exact" else 20)
    assert main(arguments) == 0
    out = capfd.readouterr().out
    assert f"{result['box']['ap']:.2f}" in out
    assert f"{result['mask']['ap50']:.2f}" in out


def test_wrong_use_of_the_command(
    folder: Path, tiny_model: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    detector, data = str(folder / "masks.pqmodel"), str(folder / "pictures")
    for arguments, message in (
        (["eval", detector, data], "holds a detector: give --annotations"),
        (["eval", str(tiny_model), str(pictures), "--annotations", "x.json"], "annotations are for detectors"),
        (["eval", detector, data, "--annotations", "gone.json"], "gone.json: no such file"),
        (["eval", detector, data, "--annotations", "x.json", "--classes", "y"], "--classes names class folders"),
    ):
        assert main(arguments) == 2
        assert message in capfd.readouterr().err
