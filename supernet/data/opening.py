"""The one way in which image files become pixels: what an image viewer shows, as 8-bit RGB."""

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

FRAMES = "frames"
"""Key in `info` of an opened image whose file holds several: their number. Only the first is used."""

ORIENTATION = 0x0112
"""EXIF tag: how a picture is turned and mirrored before it is shown."""

DEPTHS = (1, 255, 4095, 65535)
"""Largest value of pixels stored in more than 8 bits: shares, 8-bit values, 12 bits (scanners, X-rays), 16 bits."""


def open_image(file: "str | Path | IO[bytes]") -> "Image.Image":
    """Returns the image in a file as `as_rgb` does.

    Raises:
        OSError, SyntaxError, ValueError: the file cannot be read as an image, or has more pixels than Pillow allows.
    """
    from PIL import Image

    _check_regular(file)
    try:
        with Image.open(file) as image:
            return as_rgb(image)
    except (OSError, SyntaxError, ValueError):
        raise
    except MemoryError as error:
        raise OSError("there is not enough memory to decode it") from error
    except Image.DecompressionBombError as error:
        raise OSError(f"{str(error).partition(',')[0]}; larger files are refused as decompression bombs") from error
    except Exception as error:  # Pillow's plug-ins raise whatever goes wrong in a damaged file
        raise OSError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def shown_size(file: "str | Path") -> tuple[int, int]:
    """Returns width and height of an image as a viewer shows it; of most formats only the header is read.

    Raises:
        OSError, SyntaxError, ValueError: as `open_image`.
    """
    from PIL import Image

    _check_regular(file)
    try:
        with Image.open(file) as image:
            turned = image.format == "TIFF"  # Pillow turns TIFF files when it loads their pixels
            if turned:
                image.load()
            exchanged = not turned and _orientation(image) >= 5
            return (image.height, image.width) if exchanged else (image.width, image.height)
    except (OSError, SyntaxError, ValueError):
        raise
    except Exception as error:  # as in `open_image`
        raise OSError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _check_regular(file: "str | Path | IO[bytes]") -> None:
    """Raises `OSError` for a path without a regular file, such as a pipe, which would block.

    It is written out, since exports have a copy of these functions and no other module of the project.
    """
    import errno
    import os
    import stat

    if isinstance(file, str | Path) and not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(file))


def as_rgb(image: "Image.Image") -> "Image.Image":
    """Returns an image as a viewer shows it, in RGB with 8 bits.

    The EXIF orientation is applied, and transparent parts are laid on white. Of several frames the first is taken;
    `info[FRAMES]` then has their number. Values of more than 8 bits are scaled by their range: from 0 to the smallest
    of `DEPTHS` that holds all of them; where none does, or some are negative, from the lowest to the highest value.

    Raises:
        OSError, ValueError: damaged pixels, a colour mode that Pillow cannot convert, or values that are not finite.
    """
    from PIL import Image

    frames = _frames(image)
    image.load()
    deep = image.mode == "F" or image.mode.startswith("I")
    rgb = _scaled(image) if deep else _opaque(image)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(_orientation(image))
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info = {FRAMES: frames} if frames > 1 else {}  # without the orientation, which must not be applied twice
    return rgb


def _frames(image: "Image.Image") -> int:
    """Returns the number of frames or pages; 1 for photographs with a preview, which many cameras store (MPO)."""
    frames = 1
    if getattr(image, "format", None) != "MPO":
        with contextlib.suppress(Exception):  # a damaged table of frames does not matter to the first
            frames = int(getattr(image, "n_frames", 1))
    return frames


def _orientation(image: "Image.Image") -> int:
    """Returns the EXIF orientation, 1 to 8, after the pixels are loaded, since Pillow turns TIFF files by itself."""
    with contextlib.suppress(Exception):  # photographs with damaged EXIF data are shown as they are stored
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def _opaque(image: "Image.Image") -> "Image.Image":
    """Returns an image of 8 bits per channel in RGB, its transparent parts laid on white."""
    from PIL import Image

    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled(image: "Image.Image") -> "Image.Image":
    """Returns a gray image of more than 8 bits in RGB; see `as_rgb`."""
    import numpy
    from PIL import Image

    values = numpy.asarray(image)
    low, high = values.min(), values.max()
    if not numpy.isfinite([low, high]).all():
        raise ValueError("it holds values that are not finite")
    bounds = DEPTHS if image.mode == "F" else DEPTHS[1:]
    bound = next((bound for bound in bounds if low >= 0 and high <= bound), None)
    if bound == 255:
        gray = values
    elif bound is not None:
        gray = values * (255 / bound)
    else:
        gray = (values.astype(numpy.float64) - low) * (255 / max(float(high) - float(low), 1e-30))
    if bound != 255:
        gray = gray.round()
    pixels = gray.clip(0, 255).astype(numpy.uint8)
    if isinstance(image.info.get("transparency"), int):
        pixels[values == image.info["transparency"]] = 255
    return Image.fromarray(pixels).convert("RGB")
