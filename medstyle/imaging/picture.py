"""Read and write pictures of 8 or 16 bits as RGB: PNG, JPEG, WebP, TIFF and similar formats."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medstyle.errors import Code, Refusal, reading
from medstyle.imaging.bounded import BoundedFile
from medstyle.jobs.atomic import atomic

if TYPE_CHECKING:
    from PIL import ImageFile

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Pixels = NDArray[np.uint8 | np.uint16]  # (H, W, 3) sRGB, or (H, W, 4) with opacity; white is the type's largest value

MAX_PIXELS = 1 << 26  # read from the header before anything is decoded: a small file can declare a huge image
TEXT_BYTES = 1 << 26  # of a PNG's text chunks, unpacked
SYNTHETIC_MARK = "AI SYNTHETIC"  # begins every note; by it `inventory` knows again what a model made
SYNTHETIC_NOTE = f"{SYNTHETIC_MARK} - made by medstyle"
BITS, DESCRIPTION, ORIENTATION, EXTRA = 258, 270, 274, 338  # tags of TIFF and EXIF
UPRIGHT: dict[int, Callable[[NDArray], NDArray]] = {  # by orientation
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 3),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


def read_picture(source: Path | str, name: str | None = None, *, alpha: bool = False) -> Pixels:
    """Read a picture upright as ``(H, W, 3)`` sRGB: uint16 if the file has 16 bits, else uint8.

    Colours are converted to sRGB by the file's own ICC profile. Only the first frame is read; EXIF
    is dropped.

    Args:
        source: the file.
        name: name of the file in error messages; default: its own.
        alpha: return opacity as a fourth channel if the file has it, instead of laying the picture
            over white.

    Raises:
        Refusal: ``E_DECODE`` not a picture or cut short, ``E_TOO_LARGE`` more than
            :data:`MAX_PIXELS`, ``E_BITS`` neither 8 nor 16 bits.
    """
    from PIL import Image

    path = Path(source)
    label = name or path.name
    with reading(label):
        try:
            with opened(path) as file:
                return _read(file, path, label, alpha)
        except Image.DecompressionBombError:
            raise Refusal(Code.E_TOO_LARGE, f"{label}: the limit is {MAX_PIXELS} pixels") from None


def _read(file: ImageFile.ImageFile, path: Path, label: str, alpha: bool) -> Pixels:
    if file.width * file.height > MAX_PIXELS:
        raise Refusal(Code.E_TOO_LARGE, f"{label}: {file.width} x {file.height} pixels; the limit is {MAX_PIXELS}")
    bits = file.tag_v2.get(BITS, ()) if file.format == "TIFF" else ()  # type: ignore[attr-defined]
    if file.mode in ("I", "F") or any(n > 8 and n != 16 for n in bits):
        raise Refusal(Code.E_BITS, f"{label}: its number of bits does not define white; write it with 8 or 16 bits")
    colours, opacity = _layers(file, path)
    pixels = np.dstack([_srgb(colours, file.info.get("icc_profile")), opacity])
    return np.ascontiguousarray(pixels if alpha else over_white(pixels))


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open a picture with Pillow; text chunks, such as the history of an editor, may be long."""
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = TEXT_BYTES
    with warnings.catch_warnings(action="ignore"), BoundedFile(path) as bytes_, Image.open(bytes_) as file:
        yield file


def over_white(pixels: Pixels) -> Pixels:
    """Lay ``(H, W, 4)`` over white; ``(H, W, 3)`` is returned unchanged."""
    if pixels.shape[2] == 3:
        return pixels
    white = np.float32(np.iinfo(pixels.dtype).max)
    opacity = pixels[..., 3:] / white
    return np.rint(pixels[..., :3] * opacity + white * (1 - opacity)).astype(pixels.dtype)


def to_unit(pixels: Pixels) -> NDArray[np.float32]:
    """Return the values as float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def from_unit(values: NDArray, dtype: DTypeLike) -> Pixels:
    """Round values in [0, 1] to ``dtype``, uint8 or uint16; values outside are clipped."""
    white: int = np.iinfo(np.dtype(dtype)).max
    scaled = np.clip(values, 0, 1)
    scaled *= white
    return np.rint(scaled, out=scaled).astype(dtype)


def _layers(opened: ImageFile.ImageFile, path: Path) -> tuple[Pixels, Pixels]:
    """Return upright colours ``(H, W, 1, 3 or 4)``, and opacity ``(H, W, 0 or 1)``.

    The colours are grey, RGB or CMYK.
    """
    from PIL import ImageCms, ImageOps

    kind, mode, associated = opened.format, opened.mode, False
    deep = kind == "PNG" and ";16" in str(opened.tile)  # read before decoding, which a PNG's EXIF may follow
    if kind == "TIFF":
        tags = opened.tag_v2  # type: ignore[attr-defined]
        deep, associated = 16 in tags.get(BITS, ()) and mode != "CMYK", tags.get(EXTRA, ())[:1] == (1,)
    turn = UPRIGHT.get(opened.getexif().get(ORIENTATION, 1), np.asarray)
    image = ImageOps.exif_transpose(opened)  # also for 16 bits, because no other decoder is as strict
    if deep:
        return _deep_layers(turn(_decoded(path, str(kind))), associated)
    if image.mode == "LAB":  # whose band A is a colour, not opacity
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.has_transparency_data and "A" not in image.getbands():
        image = image.convert("LA" if mode == "L" else "RGBA")
    colours = image.convert({"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB"))
    opacity = [np.asarray(image.getchannel("A"))] if "A" in image.getbands() else []
    size = (image.height, image.width)
    return np.asarray(colours).reshape(*size, -1), np.asarray(opacity, np.uint8).reshape(*size, -1)


def _decoded(path: Path, kind: str) -> NDArray[np.uint16]:
    """Read the values of a 16-bit PNG or TIFF, ``(H, W, n)``."""
    import imagecodecs
    import tifffile

    if kind == "PNG":
        values = imagecodecs.png_decode(path.read_bytes())
    else:
        with tifffile.TiffFile(path, name="picture") as file:
            page = file.pages.first
            values = page.asarray()
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and values.ndim == 3:
                values = np.moveaxis(values, 0, -1)
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                values = ~values
    if values.dtype != np.uint16:
        raise ValueError(values.dtype)
    return values.reshape(*values.shape[:2], -1)


def _deep_layers(values: Pixels, associated: bool) -> tuple[Pixels, Pixels]:
    """Split ``(H, W, n)`` into colours and opacity, which may be premultiplied (``associated``)."""
    bands = 3 if values.shape[2] > 2 else 1
    colours, opacity = values[..., :bands], values[..., bands : bands + 1]
    if associated:
        colours = from_unit(to_unit(colours) / np.maximum(to_unit(opacity), 1e-6), np.uint16)
    return colours, opacity


def _srgb(colours: Pixels, profile: bytes | None) -> Pixels:
    """Convert grey, RGB or CMYK to sRGB; a damaged or unsuitable profile is ignored."""
    bands = colours.shape[2]
    if profile:
        import imagecodecs

        space = {1: "gray", 3: "rgb", 4: "cmyk"}[bands]
        try:
            made: Pixels = imagecodecs.cms_transform(
                np.ascontiguousarray(colours.squeeze(2) if bands == 1 else colours),
                profile,
                imagecodecs.cms_profile("srgb"),
                colorspace=space,
                outcolorspace="rgb",
                outdtype=colours.dtype,
            )
        except (imagecodecs.CmsError, ValueError):
            pass
        else:
            return made
    if bands == 4:
        from PIL import Image

        return np.asarray(Image.fromarray(colours, "CMYK").convert("RGB"))
    return np.broadcast_to(colours, (*colours.shape[:2], 3))


def write_picture(path: Path | str, pixels: Pixels, note: str = "") -> None:
    """Write pixels atomically, by the suffix of ``path``.

    The pixels are ``(H, W, 3)``, ``(H, W, 4)`` or grey ``(H, W)``. PNG and TIFF keep 16 bits; other
    formats round them to 8. PNG, TIFF and WebP keep opacity; other formats lay the picture over
    white. ``note`` marks the file: as a PNG text chunk, or as the image description in the EXIF of
    other formats.
    """
    from PIL import Image, PngImagePlugin

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".tif", ".tiff"):
        pixels = from_unit(to_unit(pixels), np.uint8)
    if pixels.ndim == 3 and suffix not in (".png", ".tif", ".tiff", ".webp"):
        pixels = over_white(pixels)
    data = io.BytesIO()  # PIL does not notice that a full disk takes only the first bytes of its last block
    if pixels.dtype == np.uint16:
        _write_deep(data, suffix, pixels, note)
    else:
        options: dict[str, Any] = {}
        if note and suffix == ".png":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text("Comment", note)
        elif note and suffix != ".bmp":
            options["exif"] = Image.Exif()
            options["exif"][DESCRIPTION] = note
        if suffix in (".jpg", ".jpeg", ".webp"):
            options["quality"] = 95
        Image.fromarray(pixels).save(data, Image.registered_extensions()[suffix], **options)
    with atomic(path) as part:
        part.write_bytes(data.getbuffer())


def _write_deep(file: io.BytesIO, suffix: str, pixels: Pixels, note: str) -> None:
    """Write a PNG or TIFF of 16 bits."""
    import imagecodecs
    import tifffile
    from PIL import PngImagePlugin

    if suffix == ".png":
        data = imagecodecs.png_encode(np.ascontiguousarray(pixels))
        head = 33  # bytes of the signature and the header, after which text is allowed
        file.write(data[:head])
        if note:
            PngImagePlugin.putchunk(file, b"tEXt", b"Comment\0" + note.encode("latin-1"))
        file.write(data[head:])
    else:
        tifffile.imwrite(
            file,
            pixels,
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
            extrasamples=["unassalpha"] if pixels.shape[2:] == (4,) else None,
            description=note or None,
            compression="zlib",
            metadata=None,
            software=False,
        )
