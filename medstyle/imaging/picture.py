"""Pictures: PNG, JPEG, TIFF and their like, 8-bit RGB in and out (Pillow)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Refusal

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
MAX_PIXELS = 1 << 26  # read from the header before anything is decoded: a small file can declare a huge image
SYNTHETIC_NOTE = "AI SYNTHETIC - made by medstyle"


def read_picture(source: Path | str | IO[bytes], name: str | None = None) -> NDArray[np.uint8]:
    """Read a picture upright as ``(H, W, 3)`` RGB; alpha is laid over white, EXIF is dropped.

    Args:
        source: a path or an open binary file.
        name: what error messages call it; default: the file's name.

    Raises:
        Refusal: ``E_DECODE`` not a picture or cut short, ``E_TOO_LARGE`` more than :data:`MAX_PIXELS`.
    """
    from PIL import Image, ImageOps

    label = name or (Path(source).name if isinstance(source, str | Path) else "picture")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
            with Image.open(source) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    size = f"{opened.width} x {opened.height}"
                    raise Refusal("E_TOO_LARGE", f"{label}: {size} pixels; the limit is {MAX_PIXELS}")
                image = ImageOps.exif_transpose(opened)
    except Refusal:
        raise
    except Exception:  # Pillow's decoders raise many kinds; their texts quote the file
        raise Refusal("E_DECODE", f"{label}: not a readable picture; it may be cut short") from None
    if image.mode.startswith(("I", "F")):  # 16-bit and float: to 8 bits by the value range of the type
        values = np.asarray(image, np.float32)
        scale = 257.0 if values.max() > 255 else 1.0
        image = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def write_picture(path: Path | str, pixels: NDArray[np.uint8], note: str = "") -> None:
    """Write ``(H, W, 3)`` or ``(H, W)`` uint8 pixels by the suffix of ``path``, all or nothing.

    ``note`` marks the file: a PNG text chunk, or the EXIF image description of the other formats.
    """
    from PIL import Image, PngImagePlugin

    path = Path(path)
    options: dict[str, Any] = {}
    if note and path.suffix.lower() == ".png":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", note)
        options["pnginfo"] = text
    elif note and path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".tif", ".tiff"):
        exif = Image.Exif()
        exif[0x010E] = note  # ImageDescription
        options["exif"] = exif
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        options["quality"] = 95
    scratch = path.with_name(f".part-{path.name}")
    Image.fromarray(pixels).save(scratch, **options)
    scratch.replace(path)
