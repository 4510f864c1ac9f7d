"""Image files of every kind become what a viewer shows: turned, composed, scaled, bounded, or refused by name."""

import contextlib
import io
import tarfile
import warnings
from pathlib import Path

import hypothesis
import numpy
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image

from detection.data.load import load as load_boxes
from detection.predictions import read_image
from helpers.coco import change, make_coco, settings
from helpers.images import make_folder
from supernet.config import Data
from supernet.data.decode import ELONGATED, fit
from supernet.data.load import load
from supernet.data.opening import FRAMES, as_rgb, open_image
from supernet.data.split import split
from supernet.errors import InputError

TURNED = range(1, 9)


def corners(image: Image.Image) -> list[int]:
    """The brightness of the corners, clockwise from the top left."""
    gray = numpy.asarray(image.convert("L"), dtype=int)
    return [gray[0, 0], gray[0, -1], gray[-1, -1], gray[-1, 0]]


def upright() -> Image.Image:
    pixels = numpy.zeros((40, 64), dtype=numpy.uint8)
    for value, (y, x) in zip((60, 120, 180, 240), ((0, 0), (0, 32), (20, 32), (20, 0)), strict=True):
        pixels[y : y + 20, x : x + 32] = value
    return Image.fromarray(pixels).convert("RGB")


def stored(orientation: int) -> Image.Image:
    """The upright picture as a camera stores it that writes this orientation."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # inverse transpositions
    image = upright()
    return image if orientation == 1 else image.transpose(Image.Transpose(back[orientation]))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_exif_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    stored(orientation).save(path, exif=exif, **options)
    image = open_image(path)
    assert image.size == (64, 40)
    assert corners(image) == pytest.approx([60, 120, 180, 240], abs=3)
    assert corners(as_rgb(image)) == corners(image)
    assert read_image(path).shape == (3, 40, 64)


def test_damaged_exif_data_leave_a_photograph_as_it_is_stored(tmp_path: Path) -> None:
    upright().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_image(tmp_path / "a.jpg").size == (64, 40)


RAMP = numpy.linspace(0, 1, 256)[None].repeat(4, 0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("most", "depth"), [(65535, 65535), (4095, 4095), (4000, 4095), (255, 255), (30000, 65535)])
def test_16_bits_are_scaled_by_their_range(tmp_path: Path, suffix: str, most: int, depth: int) -> None:
    values = (RAMP * most).round().astype(numpy.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    got = numpy.asarray(open_image(tmp_path / f"a.{suffix}"))
    assert got.shape == (4, 256, 3)
    assert (got == (values * (255 / depth)).round().astype(numpy.uint8)[..., None]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP, (RAMP * 255).round()),
        (RAMP * 255, (RAMP * 255).astype(numpy.float32).astype(numpy.uint8)),
        (RAMP * 65535, (RAMP * 255).round()),
        (RAMP * 2e6 - 1e6, (RAMP * 255).round()),
        (RAMP * 0 + 7, RAMP * 0 + 7),
        (RAMP * 0 - 7, RAMP * 0),
    ],
)
def test_floating_point_images_are_scaled_by_their_range(
    tmp_path: Path, values: "numpy.typing.NDArray[numpy.float64]", expected: "numpy.typing.NDArray[numpy.float64]"
) -> None:
    Image.fromarray(values.astype(numpy.float32)).save(tmp_path / "a.tif")
    assert abs(numpy.asarray(open_image(tmp_path / "a.tif"))[..., 0] - expected).max() <= 1


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    values = RAMP.astype(numpy.float32)
    values[2, 3] = numpy.nan
    Image.fromarray(values).save(folder / "cat" / "3.tif")
    with pytest.raises(InputError, match=r"cat/3\.tif cannot be read \(it holds values that are not finite\)"):
        load(Data(str(folder), size=6))


def transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (4, 0, 8, 8))
    return image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    transparent(mode).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((6, 6)) == ((76, 76, 76) if mode == "LA" else (255, 0, 0))


@pytest.mark.parametrize(
    ("mode", "colour"), [("1", 1), ("L", 200), ("P", 7), ("CMYK", (0, 0, 0, 40)), ("YCbCr", (9, 8, 7))]
)
def test_other_modes_are_converted_as_pillow_does(tmp_path: Path, mode: str, colour: object) -> None:
    image = Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]
    image.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as file:
        expected = file.convert("RGB").tobytes()
    assert open_image(tmp_path / "a.tif").tobytes() == expected


def animate(path: Path) -> None:
    frames = [Image.new("RGB", (20, 12), (100, i, 50)) for i in (9, 90, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)


def test_the_first_frame_of_an_animation_is_used_and_a_warning_counts_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    animate(folder / "dog" / "x.webp")
    assert open_image(folder / "dog" / "x.webp").getpixel((0, 0)) == (100, 9, 50)
    assert open_image(folder / "dog" / "x.webp").info == {FRAMES: 3}
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"only the first frame of 1 images with several is used: .*dog/x\.webp"):
            load(Data(str(folder), size=6), cache=tmp_path / "run")
    for name in ("a", "b"):
        animate(folder / "dog" / f"{name}.webp")
    with pytest.warns(UserWarning, match=r"only the first frame of \d images"):
        load(Data(str(folder), size=6, stream=True, workers=0))
    coco = make_coco(tmp_path / "coco")
    (tmp_path / "coco" / "train" / "3.webp").unlink(missing_ok=True)
    frames = [Image.new("RGB", (64, 48), (i, 0, 0)) for i in (9, 90)]
    frames[0].save(tmp_path / "coco" / "train" / "3.webp", save_all=True, append_images=frames[1:], lossless=True)
    change(coco, lambda document: document["images"][3].update(file_name="train/3.webp"))
    with pytest.warns(UserWarning, match=r"only the first frame of 1 images with several is used: train/3\.webp"):
        load_boxes(settings(coco))


def bomb(path: Path) -> None:
    """A black image of 20,000 × 20,000 pixels in 50 kB."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(2501 * 20))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def test_decompression_bombs_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images")
    bomb(folder / "cat" / "3.png")
    with pytest.raises(InputError, match=r"cat/3\.png cannot be read \(Image size \(400000000 pixels\) exceeds"):
        load(Data(str(folder), size=6))
    with pytest.warns(UserWarning, match=r"1 images cannot be read and are left out: .*cat/3\.png"):
        load(Data(str(folder), size=6, skip_unreadable=True))
    with pytest.raises(InputError, match=r"3\.png cannot be read \(Image size"):
        read_image(folder / "cat" / "3.png")
    coco = make_coco(tmp_path / "coco")
    bomb(tmp_path / "coco" / "train" / "3.png")
    with pytest.raises(InputError, match=r"train/3\.png \(id 103\) cannot be read \(Image size"):
        load_boxes(settings(coco))


def test_whatever_pillow_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path)
    for error in (
        IndexError("x"),
        KeyError("x"),
        TypeError("x"),
        RuntimeError("a\nb"),
        MemoryError(),
        AssertionError(),
    ):

        def damaged(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Image, "open", damaged)
        with pytest.raises(InputError, match=r"20 images cannot be read: .*cat/0\.png \(.+\)") as caught:
            load(Data(str(folder), size=6))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 40000), (40000, 1), (3, 3 * ELONGATED + 1)])
def test_extreme_shapes_need_little_memory(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (0, 0, 255))
    middle = tuple(side // 2 for side in size)
    image.paste((255, 0, 0), (max(middle[0] - 4, 0), max(middle[1] - 4, 0), middle[0] + 5, middle[1] + 5))
    pixels = fit(image, 500)  # 60 GB without a limit
    assert pixels.shape == (3, 500, 500)
    assert pixels[:, 250, 250].tolist() == [255, 0, 0]


def test_images_of_ordinary_shape_keep_their_pixels() -> None:
    from torchvision.transforms.v2 import functional as transforms

    pixels = torch.randint(0, 256, (3, 10, 10 * ELONGATED), dtype=torch.uint8)
    image = transforms.to_pil_image(pixels)
    expected = transforms.center_crop(transforms.resize(pixels, [7], antialias=True), [7, 7])
    assert torch.equal(fit(image, 7), expected)


@pytest.mark.parametrize("orientation", TURNED)
def test_boxes_refer_to_what_a_viewer_shows(tmp_path: Path, orientation: int) -> None:
    path = make_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    for file in (tmp_path / "train").iterdir():
        with Image.open(file) as image:
            shown = image.convert("RGB")
        raw = shown if orientation == 1 else shown.transpose(Image.Transpose(back[orientation]))
        raw.save(file, exif=exif)
    train = load_boxes(settings(path)).train
    for i in range(len(train)):
        target, pixels = train.annotations.target(i), train.image(i)
        x1, y1, x2, y2 = target["boxes"][~target["crowd"]][0].long().tolist()
        inside = pixels[:, y1:y2, x1:x2].sum(0)
        assert (inside == 255).all()
        assert int((pixels.sum(0) == 255).sum()) == inside.numel()


def test_an_annotation_file_that_ignores_the_orientation_is_refused(tmp_path: Path) -> None:
    path = make_coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "train" / "3.png", exif=exif)
    with pytest.raises(
        InputError, match=r"3\.png \(id 103\) has 48×64 pixels, but 64×48 .* turned as their EXIF data say"
    ):
        load_boxes(settings(path))
    change(path, lambda document: document["images"][3].update(width=48, height=64))
    load_boxes(settings(path))


def test_timm_readers_open_images_in_the_same_way(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images" / "train", images=12)
    transparent("RGBA").save(folder / "cat" / "0.png")
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, "images")
    for root in (folder.parent, archive):
        source = Data("timm:", root=str(root), size=8, workers=0, test_split="", calibration=24)
        whole = load(source)
        pixels = torch.cat([whole.calibration.pixels, whole.validation.pixels, whole.test.pixels])
        assert (pixels[:, :, 4, 1] == 255).all(1).sum() == 1


def test_images_that_are_all_the_same_give_a_warning() -> None:
    pixels, labels = torch.full((40, 1, 2, 2), 9, dtype=torch.uint8), torch.arange(40) % 2
    with pytest.warns(UserWarning, match="all 26 training images are the same"):
        split(Data(), pixels, labels, ("a", "b"))
    pixels[7] = 8
    pixels[9] = 8
    pixels[11] = 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(Data(), torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 1, 2, 2), labels, ("a", "b"))


@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_files_never_raise_anything_else(examples: int) -> None:
    """Bytes of files of several formats are changed at random; the outcome is an image or one of three errors."""

    originals = []
    for suffix in ("png", "jpeg", "tiff", "webp", "bmp", "ppm"):
        buffer = io.BytesIO()
        upright().resize((12, 8)).save(buffer, suffix)
        originals.append(buffer.getvalue())

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples == 100,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        st.sampled_from(originals), st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), max_size=5)
    )
    def check(original: bytes, changes: list[tuple[int, bytes]]) -> None:
        data = bytearray(original)
        for place, patch in changes:
            at = place % (len(data) + 1)
            data[at : at + len(patch)] = patch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(OSError, SyntaxError, ValueError):
                assert open_image(io.BytesIO(bytes(data))).mode == "RGB"

    check()
