"""Read the voxels of a series, from stored values to modality values (PS3.3 C.11.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder
from pydicom.uid import UID, RLELossless

from medstyle.dicom.elements import DEFLATED, inflate, quiet
from medstyle.dicom.header import LIMITS, LITTLE, NATIVE, Frame, Instance
from medstyle.dicom.scan import Series
from medstyle.errors import Code, Refusal, reading
from medstyle.imaging.bounded import BoundedFile
from medstyle.imaging.codestream import frame_size
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

_MODALITIES = {"CT": "CT", "MR": "MR", "PT": "PET"}


def read_series(series: Series, domain: str, *, allow: Collection[str] = ()) -> Volume:
    """Read a ``volume`` series as float32 in modality units (HU for CT; display values for MR).

    Rescale slope and intercept or the modality LUT are applied to each slice; padding becomes the
    air value of ``domain``; MONOCHROME1 is inverted within the stored range, except if the values
    are quantities (CT, PET). ``allow`` contains codes to override after inspection, such as
    ``E_BURNED_IN``.

    Raises:
        Refusal: the series' own code; ``E_DOMAIN`` if HU would be read as MR or vice versa;
            ``E_DECODE``, ``E_TRUNCATED``, ``E_NOT_FINITE`` from the pixels.
    """
    if series.kind == "4d":
        raise Refusal(series.code, series.reason)
    return _read(series, "volume", domain, allow)


def read_image(series: Series, domain: str, *, allow: Collection[str] = ()) -> Volume:
    """Read a single plane as a volume with D = 1.

    A plane with a position keeps it; the slice axis is the normal, with the length of the slice
    thickness. A plane without a position gets the identity affine, in which distances have no
    meaning (``series.affine`` is None).
    """
    return _read(series, "image", domain, allow)


def _read(series: Series, kind: str, domain: str, allow: Collection[str]) -> Volume:
    if not series.usable and series.code not in allow:
        raise Refusal(series.code, series.reason)
    if series.kind != kind:
        raise Refusal(Code.E_SOPCLASS, f"a {kind} is expected, this is a {series.kind}")
    if "COLOUR" in series.flags:
        raise Refusal(Code.E_COLOR, "the pixels are colours; read them with read_colour")
    wanted, found = DOMAINS[domain].dicom, series.attributes.get("Modality", "")
    if Code.E_DOMAIN not in allow and (found in ("CT", "PT") or wanted == "CT") and wanted != found:
        raise Refusal(
            Code.E_DOMAIN, f"{_MODALITIES.get(found, 'another')} values cannot be read as {domain}; name its domain"
        )
    voxels = np.empty(series.shape, np.float32)
    air = DOMAINS[domain].air
    with quiet():
        reader = _Reader()
        for k, frame in enumerate(series.frames):
            reader.values(frame, air, voxels[k])
    affine = np.eye(4) if series.affine is None else series.affine
    return Volume(voxels, affine, domain)


def read_stored(series: Series) -> Iterator[NDArray[Any]]:
    """Yield each frame's stored integers, masked to BitsStored, sign-extended, not rescaled."""
    with quiet():
        reader = _Reader()
        for frame in series.frames:
            yield reader.stored(frame).copy()


def read_pixels(instance: Instance) -> NDArray[Any]:
    """Return all frames of a file as ``(N, H, W)`` stored values or ``(N, H, W, 3)`` RGB.

    Stored values are those of :func:`read_stored`. Call it within :func:`quiet`. The sheet of a
    mosaic is one frame.
    """
    reader, whole = _Reader(), replace(instance, tiles=1)
    pixels = np.empty(0)
    for k in range(whole.frames):
        frame = Frame(whole, k, None, None, None, 1, 0, (), (), ())
        one = reader.stored(frame) if whole.samples == 1 else reader.decode(frame, raw=False)
        if k == 0:
            pixels = np.empty((whole.frames, *one.shape), one.dtype.newbyteorder("<"))
        pixels[k] = one
    return pixels


def read_colour(series: Series, *, allow: Collection[str] = ()) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of a colour image or video as ``(H, W, 3)`` RGB, from YBR or a palette.

    Raises:
        Refusal: the series' own code unless it is ``E_COLOR``, ``E_SOPCLASS`` (a cine) or in
            ``allow``; ``E_DECODE``.
    """
    if series.kind == "refused" or series.code not in ("", Code.E_COLOR, Code.E_SOPCLASS, *allow):
        raise Refusal(series.code, series.reason)
    with quiet(), reading():
        reader = _Reader()
        for frame in series.frames:
            yield reader.colour(frame)


class _Reader:
    """Decodes frames and caches the last file, which may hold the next frames as well."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.dataset = Dataset()
        self.inflated = b""
        self.buffer = np.empty(0, np.uint8)  # reused, because allocating for each slice costs more than reading it
        self.sheet: tuple[Instance, NDArray[Any]] | None = None  # a mosaic, decoded once for all its tiles

    def values(self, frame: Frame, air: float, out: NDArray[np.float32]) -> None:
        """Write the modality values of ``frame`` to ``out`` ``(H, W)``."""
        instance = frame.instance
        stored = self.stored(frame)
        padded = None
        if instance.padding is not None:
            low, high = instance.padding
            padded = (stored >= low) & (stored <= high)
        quantity = instance.attributes.get("Modality") in ("CT", "PT")
        inverted = "MONOCHROME1" in instance.flags and not quantity
        if inverted and not instance.lut:  # of a linear scale the order does not matter
            top = -1 if instance.signed else (1 << instance.bits_stored) - 1
            stored = top - stored.astype(np.int64)
        if instance.lut:
            dataset = self._open(instance)
            try:
                out[:] = apply_modality_lut(stored, dataset)
            except Exception as error:  # depends on what is wrong with the table
                raise Refusal(Code.E_DECODE, "ModalityLUTSequence is damaged; export the original images") from error
            if inverted:  # the least value is white after the table (PS3.3 C.7.6.3.1.2)
                lut = dataset.ModalityLUTSequence[0]
                inputs = np.arange(int(lut.LUTDescriptor[0]) or 1 << 16) + int(lut.LUTDescriptor[1])
                values = apply_modality_lut(inputs, dataset)
                np.subtract(float(values.min()) + float(values.max()), out, out=out)
        elif frame.slope == 1 and instance.bits_stored <= 16:
            out[:] = stored
            if frame.intercept:
                out += np.float32(frame.intercept)
        else:  # float64, because float32 would lose digits for a slope of 6e-8 or for 32 bits
            with np.errstate(over="ignore"):
                out[:] = stored * np.float64(frame.slope) + frame.intercept
            if not np.isfinite(out).all():
                raise Refusal(Code.E_NOT_FINITE, "the rescaled values exceed 32-bit floats; export the original images")
        if padded is not None:
            out[padded] = air

    def stored(self, frame: Frame) -> NDArray[Any]:
        """Return stored values ``(H, W)``, in memory that the next call may reuse."""
        instance = frame.instance
        if instance.tiles == 1:
            return self._plane(frame)
        if self.sheet is None or self.sheet[0] is not instance:
            self.sheet = instance, self._plane(replace(frame, number=0)).copy()
        (rows, columns), (below, right) = frame.shape, divmod(frame.number, instance.tiles)
        return self.sheet[1][below * rows :, right * columns :][:rows, :columns]

    def colour(self, frame: Frame) -> NDArray[np.uint8]:
        """Return RGB ``(H, W, 3)`` with 8 bits."""
        pixels = self.decode(frame, raw=False)
        if frame.instance.photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, self._open(frame.instance))
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        if pixels.dtype != np.uint8:
            bits = 16 if frame.instance.photometric == "PALETTE COLOR" else frame.instance.bits_stored
            pixels = pixels >> max(bits - 8, 0)
        return pixels[..., :3].astype(np.uint8)

    def _plane(self, frame: Frame) -> NDArray[Any]:
        instance = frame.instance
        if instance.transfer_syntax in LITTLE and instance.samples == 1:
            return _mask(self._native(frame), instance)
        return _mask(self.decode(frame, raw=True), instance)

    def _native(self, frame: Frame) -> NDArray[Any]:
        """Read little-endian pixels directly from the offset that the header gave."""
        i = frame.instance
        start = i.offset + frame.number * i.frame_bytes
        if self.buffer.size != i.frame_bytes:
            self.buffer = np.empty(i.frame_bytes, np.uint8)
        if i.transfer_syntax == DEFLATED:
            if self.path != i.path:
                self.inflated, self.path = inflate(i.path, LIMITS.inflated_bytes), i.path
            data = np.frombuffer(self.inflated, np.uint8)[start : start + i.frame_bytes]
            found = data.size
            self.buffer[:found] = data
        else:
            with _unchanged(i) as file:
                file.seek(start)
                found = file.readinto(self.buffer.data)
        if found != i.frame_bytes:
            raise Refusal(Code.E_TRUNCATED, f"expected {i.frame_bytes} bytes of a frame, found {found}; copy it again")
        packed = i.bits_allocated == 12
        values = _unpacked(self.buffer, i.rows * i.columns) if packed else self.buffer.view(f"<u{i.value_bytes}")
        return values.reshape(i.rows, i.columns)

    def decode(self, frame: Frame, raw: bool) -> NDArray[Any]:
        """Return the pixels of ``frame`` as decoded, with colours in RGB unless ``raw``."""
        i = frame.instance
        try:
            dataset = self._open(i)
            decoder = get_decoder(UID(i.transfer_syntax))
            _check_claim(dataset, frame)
            pixels, _ = decoder.as_array(dataset, index=frame.number, raw=raw, decoding_plugin=_plugin(decoder))
        except (Refusal, KeyboardInterrupt, SystemExit):
            raise
        except NotImplementedError:
            raise Refusal(
                Code.E_DECODE, f"no decoder for transfer syntax {i.transfer_syntax}; export as Explicit VR"
            ) from None
        except BaseException as error:  # codecs raise anything (a Rust panic is not an Exception) and may quote values
            cause = f"frame {frame.number + 1} of {i.frames} cannot be decoded ({type(error).__name__})"
            raise Refusal(Code.E_DECODE, f"{cause}; export it uncompressed") from None
        return pixels

    def _open(self, instance: Instance) -> Dataset:
        if self.path != instance.path:
            with _unchanged(instance) as file:
                self.dataset, self.path = dcmread(file, force=True), instance.path
        return self.dataset


def _check_claim(dataset: Dataset, frame: Frame) -> None:
    """Compare the size in the codec's own header with the data set's, by which memory is limited.

    A codec would allocate whatever its header claims.
    """
    i = frame.instance
    if i.transfer_syntax in NATIVE or i.transfer_syntax == RLELossless:  # without a size of their own
        return
    tables = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    extended = tuple(dataset[name].value for name in tables) if all(name in dataset for name in tables) else None
    data = get_frame(dataset.PixelData, frame.number, number_of_frames=i.frames, extended_offsets=extended)
    found = frame_size(data)
    if found != (i.rows, i.columns, i.samples):
        size = " x ".join(map(str, found)) if found else "no known size"
        reason = (
            f"the codestream of frame {frame.number + 1} has {size}, the header {i.rows} x {i.columns} x {i.samples}"
        )
        raise Refusal(Code.E_DECODE, f"{reason}; export it again")


def _unpacked(data: NDArray[np.uint8], count: int) -> NDArray[np.uint16]:
    """Return 12-bit values, two in three bytes, lowest bits first (PS3.5 8.1.1)."""
    triples = np.zeros((-(-count // 2), 3), np.uint16)
    triples.ravel()[: data.size] = data
    one, both, other = triples.T
    values: NDArray[np.uint16] = np.stack([one | (both & 15) << 8, both >> 4 | other << 4], axis=1).ravel()[:count]
    return values


def _mask(pixels: NDArray[Any], instance: Instance) -> NDArray[Any]:
    """Keep BitsStored bits up to HighBit and extend the sign (PS3.5 8.1.1)."""
    i, bits = instance, instance.value_bytes * 8
    above, unused = max(bits - i.high_bit - 1, 0), bits - i.bits_stored
    pixels = pixels.astype(f"u{i.value_bytes}", copy=not pixels.flags.writeable)
    if above:
        pixels <<= above
    if i.signed:
        pixels = pixels.view(f"i{i.value_bytes}")
    if unused:
        pixels >>= unused
    return pixels


def _plugin(decoder: Any) -> str:
    """Prefer the plug-ins that preserve signed 16 bits in JPEG 2000 over Pillow, which does not."""
    return "pylibjpeg" if {"pillow", "pylibjpeg"} <= set(decoder.available_plugins) else ""


def _unchanged(instance: Instance) -> BoundedFile:
    file = BoundedFile(instance.path)
    if file.bytes != instance.size:
        file.close()
        raise Refusal(
            Code.E_DECODE, f"the file had {instance.size} bytes when scanned and has {file.bytes} now; scan again"
        )
    return file
