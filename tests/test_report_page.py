"""The report page: one file that loads nothing, whatever a name holds, with every figure that was asked for."""

import re
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_models import golden_grids, golden_model

from pyquant.accuracy import Comparison
from pyquant.errors import InputError, MissingDependencyError
from pyquant.file import write_model
from pyquant.outcome import Made, Outcome, Tried
from pyquant.planning import Plan
from pyquant.report import Report
from pyquant.report_page import check_page, render_page, write_page

pytest.importorskip("matplotlib", reason="the page's figures need matplotlib")

HOSTILE = '</td><script src="https://example.org/x.js">alert(1)</script>$\\frac{a}{b}$\x01'
ACCURACY = Comparison(
    pictures=5000, top1_before=48.46, top1_after=47.1, top5_before=73.0, top5_after=72.5, standard_error=0.31
)


PLAN = Plan(
    choices={},
    bit_operations=10**9,
    bytes=11_900,
    dense_bytes=100_000,
    layers=(),
    errors={"conv": 0.031},
    errors_by_codec={"spatial": {"scalar": 0.25, "product": 0.0125, "sparse": 0.5}, "fc": {"dense": 0.0}},
)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its text, and whether they are nested as they should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def figures(self) -> list[ElementTree.Element]:
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        return [ElementTree.fromstring(b64decode(source.partition("base64,")[2])) for source in sources]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    path = tmp_path / "a.pqmodel"
    write_model(path, golden_model())
    return Made(
        report=Report.of(path, golden_model(), max_relative_error=1e-6),
        target_bytes=12_000,
        plan=PLAN,
        output_error=0.042,
        accuracy=ACCURACY,
        provenance={"method": "gram", "samples": 1024, "rules": ["fc=dense"], "finetune": {"steps": 120}},
    )


def test_one_file(made: Made) -> None:
    page = Page(render_page(Outcome(files=(made,))))
    for said in ("a.pqmodel", "48.5 to 47.1", "1.36 points down", "5,000 pictures", "4.2 %", "3.1 % were predicted",
                 "passed", "the first convolution", "fc=dense", "steps 120", "1,024", "12.5 %"):  # fmt: skip
        assert said in page.text, said
    assert all(layer.name in page.text for layer in made.report.layers)
    assert len(page.figures()) == 1


def test_why_a_layer_has_its_codec(made: Made) -> None:
    """What the chosen codec is to cause comes first, then the others by what they would."""
    page = Page(render_page(Outcome(files=(made,))))
    assert "product 1.25 %; scalar 25 %; sparse 50 %" in page.text
    assert "dense 0" not in page.text
    by_recipe = Page(render_page(Outcome(files=(replace(made, plan=None),))))
    assert "Why" not in by_recipe.text


def test_grids_are_told_from_codebooks(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "grids.pqmodel"
    write_model(path, golden_grids())
    report = Report.of(path, golden_grids(), max_relative_error=1e-6)
    page = Page(render_page(Outcome(files=(replace(made, report=report),))))
    for said in ("grids of 8 levels", "sparse:0.3;bits:5", "sparse:0.25;run:4;bits:4", "sparse:2:4;bits:8"):
        assert said in page.text, said


def test_nothing_is_loaded_and_every_figure_is_described(made: Made) -> None:
    smaller = replace(made, report=replace(made.report, bytes=900))
    text = render_page(Outcome(files=(made, smaller), several=True))
    page = Page(text)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object"), tag
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith("data:")
        if tag == "img":
            assert len(attributes["alt"] or "") > 30
    assert "url(" not in text
    assert "@import" not in text
    for figure in page.figures():
        links = [value for element in figure.iter() for key, value in element.attrib.items() if key.endswith("href")]
        assert all(link.startswith("#") for link in links)


def test_several_files_have_curves_and_a_table(made: Made) -> None:
    smaller = replace(made, report=replace(made.report, file="b.pqmodel", bytes=900), output_error=0.1)
    page = Page(render_page(Outcome(files=(made, smaller), several=True)))
    assert "What bytes buy" in page.text
    assert len(page.figures()) == 4  # accuracy, error, layers of each
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert "900 B: 10 %" in (alts[1] or "")
    without = [replace(entry, accuracy=None) for entry in (made, smaller)]
    assert len(Page(render_page(Outcome(files=tuple(without), several=True))).figures()) == 3


def test_trials(made: Made) -> None:
    trials = [
        Tried(target_bytes=size, bytes=size, accuracy=ACCURACY, holds=holds)
        for size, holds in ((9_000, False), (12_000, True))
    ]
    page = Page(render_page(Outcome(files=(made,), trials=tuple(trials), max_drop=1.5, is_smallest=True)))
    assert "falls by at most 1.5 points" in page.text
    assert "9,000" in page.text
    assert "too far" in page.text
    assert "Even the smallest file" in page.text


def test_hostile_names_are_only_text(made: Made) -> None:
    layers = [replace(layer, name=HOSTILE + layer.name, reason=HOSTILE) for layer in made.report.layers]
    hostile = replace(
        made,
        report=replace(made.report, file=HOSTILE, layers=tuple(layers)),
        provenance={"method": HOSTILE, "rules": [HOSTILE]},
    )
    page = Page(render_page(Outcome(files=(hostile,))))
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert page.text.count("<script src") > len(layers)
    (figure,) = page.figures()
    assert not [element for element in figure.iter() if element.tag.endswith("script")]


def test_what_is_unknown_is_left_out(made: Made) -> None:
    layers = [replace(layer, relative_output_error=None) for layer in made.report.layers]
    bare = replace(
        made,
        report=replace(made.report, layers=tuple(layers)),
        plan=None,
        output_error=None,
        accuracy=None,
        provenance={},
    )
    page = Page(render_page(Outcome(files=(bare,))))
    assert "output error" not in page.text
    assert "Top-1" not in page.text
    no_layers = replace(bare, report=replace(bare.report, layers=()))
    assert not Page(render_page(Outcome(files=(no_layers,)))).figures()


def test_sums_of_codebooks(made: Made) -> None:
    layers = [replace(layer, codebooks=2) for layer in made.report.layers]
    two = replace(made, report=replace(made.report, layers=tuple(layers)))
    assert "1x3x3, 2 x 5 centroids" in Page(render_page(Outcome(files=(two,)))).text
    assert "1x3x3, 5 centroids" in Page(render_page(Outcome(files=(made,)))).text


def test_many_layers(made: Made) -> None:
    layer = made.report.layers[1]
    layers = [replace(layer, name=f"backbone.stage.{index}.convolution.with.a.long.name") for index in range(300)]
    (figure,) = Page(
        render_page(Outcome(files=(replace(made, report=replace(made.report, layers=tuple(layers))),)))
    ).figures()
    labels = [element.text or "" for element in figure.iter() if element.tag.endswith("text")]
    named = [label for label in labels if re.search("long", label)]
    assert 40 < len(named) <= 80
    assert max(map(len, named)) <= 24
    assert not any("backbone" in label for label in named)


def test_the_page_is_checked_before_and_written_whole(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        check_page(tmp_path / "gone" / "x.html", inputs=())
    path = tmp_path / "x.html"
    check_page(path, inputs=())
    assert not path.exists()
    write_page(path, Outcome(files=(made,)))
    assert path.read_text(encoding="utf-8") == render_page(Outcome(files=(made,)))
    with pytest.raises(InputError, match="would be overwritten"):
        check_page(path, inputs=(path,))
    with pytest.raises(InputError, match="a plan has none"):
        render_page(Outcome())


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pyquant-codec\[report\]'"):
        check_page(tmp_path / "x.html", inputs=())
