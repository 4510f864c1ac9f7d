"""Whatever a data.yaml, a label file, an XML file or a table holds, it is read or refused in one line that names it."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image

from detection.config import DetectionData
from detection.data.coco import annotations_of
from detection.data.layouts import voc_document, yolo_document
from detection.data.load import load
from detection.data.table import table_document
from supernet.errors import InputError

NUMBERS = st.sampled_from(("0.5", "0", "-0.2", "1.1", "nan", "inf", "1e999", "x", "", "1e-300", "9" * 5000, "٣"))
WORDS = st.sampled_from(("0", "1", "2", "-1", "0.0", "cat", "1_0", "9" * 30)) | NUMBERS
LINES = st.lists(WORDS, max_size=7).map(" ".join)
LABELS = st.lists(LINES, max_size=4).map("\n".join) | st.text(max_size=40)

SCALARS = st.sampled_from(
    ("images", "images/0.png", "gone", ".", "..", "/dev/null", "''", "null", "5", "[]", "{}", "nan", "~")
)
SCALARS |= st.sampled_from(
    ("[a, b]", "{0: a, 1: b}", "{a: 0}", "2020-13-45", "!!python/name:os.system", "*a", "&a [*a]")
)
YAML = st.lists(
    st.tuples(st.sampled_from(("names", "train", "val", "test", "path", "nc", "x")), SCALARS).map(": ".join), max_size=5
).map("\n".join)
YAML |= st.text(max_size=60) | st.just("names: " + "[" * 500)

HEADERS = st.sampled_from(("image", "file", "class", "xmin", "ymin", "xmax", "ymax", "x", "y", "w", "h", "x1", ""))
CELLS = st.sampled_from(("0.png", "images/0.png", "1", "../0.png", "/dev/null", "cat", "\0", "a" * 300)) | NUMBERS
TABLE = st.lists(st.lists(HEADERS, max_size=8) | st.lists(CELLS, max_size=8), max_size=4).map(
    lambda rows: "\n".join(map(",".join, rows))
)
TABLE |= st.lists(st.lists(CELLS, min_size=6, max_size=6), max_size=3).map(
    lambda rows: "\n".join(map(",".join, [["image", "xmin", "ymin", "xmax", "ymax", "class"], *rows]))
)
TABLE |= st.text(max_size=60)

TAGS = ("annotation", "object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "filename", "size", "difficult", "b")
LEAVES = (WORDS | st.text(max_size=10)).map(escape)
NODES = st.recursive(
    st.tuples(st.sampled_from(TAGS), LEAVES),
    lambda inner: st.tuples(st.sampled_from(TAGS), st.lists(inner, max_size=5)),
    max_leaves=12,
)
BOX = st.tuples(*[NUMBERS] * 4).map(
    lambda corners: ("bndbox", [*zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)])
)
OBJECT = BOX.map(lambda box: ("object", [("name", "cat"), box]))
XML = (
    st.lists(NODES | OBJECT, max_size=4).map(lambda nodes: as_xml(("annotation", [("filename", "0.png"), *nodes])))
    | NODES.map(lambda node: as_xml(node))
    | st.text(max_size=40)
    | st.just("<annotation>" + "<b>" * 20_000)
)


def as_xml(node: object) -> str:
    """A tree of (tag, text or children) as XML."""
    assert isinstance(node, tuple)
    tag, content = node
    return f"<{tag}>{content if isinstance(content, str) else ''.join(map(as_xml, content))}</{tag}>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images with sound annotations in both layouts."""
    root = tmp_path_factory.mktemp("layouts")
    for folder in ("images", "labels", "Annotations"):
        (root / folder).mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32)).save(root / f"images/{i}.png")
        (root / f"labels/{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
        sound = ("annotation", [("object", [("name", "cat"), ("bndbox", [(c, "9") for c in TAGS[4:8]])])])
        (root / f"Annotations/{i}.xml").write_text(as_xml(sound))
    (root / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    (root / "objects.csv").write_text("image,xmin,ymin,xmax,ymax,class\n0.png,3,4,9,9,cat\n1.png,,,,,\n")
    return root


def read_or_refused(read: Callable[[], object], name: str) -> None:
    """One line that names the file, if it is refused."""
    said = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except InputError as error:
            said = str(error)
    assert len(said.splitlines()) < 2
    assert not said or name in said or "0.png" in said or "data.yaml" in said


def fuzzed(examples: int, root: Path) -> None:
    """Every parser on so many cases."""
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == 100,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def check(strategy: st.SearchStrategy[str], name: str, read: Callable[[], object]) -> None:
        file = root / name
        sound = file.read_bytes()

        @settings
        @hypothesis.given(strategy)
        def any_text(text: str) -> None:
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            read_or_refused(read, file.name)

        try:
            any_text()
        finally:
            file.write_bytes(sound)

    def yolo() -> object:
        document, folder = yolo_document(root / "data.yaml", "train")
        return annotations_of(document, root / "data.yaml", folder)

    def voc() -> object:
        document, folder = voc_document(root / "Annotations", str(root / "images"))
        return annotations_of(document, root / "Annotations/0.xml", folder)

    def table() -> object:
        document, folder = table_document(root / "objects.csv", str(root / "images"))
        return annotations_of(document, root / "objects.csv", folder)

    check(YAML, "data.yaml", yolo)
    check(TABLE, "objects.csv", table)
    check(LABELS, "labels/0.txt", yolo)
    check(XML, "Annotations/0.xml", voc)


def test_any_annotations_are_read_or_refused(root: Path) -> None:
    fuzzed(100, root)


@pytest.mark.slow
def test_any_annotations_are_read_or_refused_at_length(root: Path) -> None:
    fuzzed(2000, root)


@pytest.mark.parametrize("name", ["data.yaml", "labels/0.txt", "Annotations/0.xml", "images/0.png", "list.txt"])
def test_a_pipe_in_place_of_a_file_does_not_block(root: Path, name: str, tmp_path: Path) -> None:
    """To open a pipe without a writer would wait for ever."""
    for file in root.rglob("*.*"):
        (tmp_path / file.relative_to(root)).parent.mkdir(exist_ok=True)
        (tmp_path / file.relative_to(root)).write_bytes(file.read_bytes())
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    source = {"Annotations/0.xml": "Annotations", "list.txt": "list.txt"}.get(name, "data.yaml")
    config = DetectionData(str(tmp_path / source), str(tmp_path / "images") if source != "data.yaml" else "", size=32)
    with pytest.raises(InputError, match=name.rpartition("/")[2]):
        load(config)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_entities_are_refused_in_any_encoding(root: Path, tmp_path: Path, encoding: str) -> None:
    text = "<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>&x;</annotation>"
    (tmp_path / "0.xml").write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match=r"0\.xml (defines entities|is not XML)"):  # expat reads no UTF-32
        voc_document(tmp_path, str(root / "images"))


def test_a_list_of_annotations_stays_in_its_folder(root: Path, tmp_path: Path) -> None:
    (root / "Annotations/list.txt").write_text("0\n../../elsewhere\n")
    with pytest.raises(InputError, match=r"list\.txt lists '\.\./\.\./elsewhere'"):
        voc_document(root / "Annotations/list.txt", str(root / "images"))
    (root / "Annotations/list.txt").unlink()
