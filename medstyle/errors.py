"""Define the errors that a user can act on: one line that names the cause and the remedy.

=====================
============================================================================== :class:`UserError`
the base of all; the command line prints it and exits with code 2 :class:`Refusal`       an input
that cannot be used, with a :class:`Code` :class:`ParamsError`   an invalid value in params.yaml, on
the command line or in the environment :class:`DataError`     files or a data set that lack
something that is needed :class:`ModelError`    a translator or a registered version that is
missing, damaged or unsuitable :class:`TrainingError` a training that stopped itself
:class:`OutputError`   an output that already exists or cannot be written :class:`ServiceError`  a
server, registry or scheduler that does not answer :class:`MissingPackage` an optional package that
is not installed =====================
==============================================================================
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

MARK = "__patient_data__"  # modules with this global read or hold data from hospitals, even after they are moved


class Code(StrEnum):
    """The problem with an input: stable and machine-readable.

    Example:
        >>> Code.E_GAP.meaning
        'distances between slices differ, or positions leave a straight line: add the slices, or set
        `ingest.gaps`'
    """

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Code:
        code = str.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    E_4D = (
        "E_4D",
        (
            "several images at each position, or a mosaic that does not define its tiling: choose"
            " one by `ingest.time_point` or `Series.volume(n)`, or export it as enhanced DICOM"
        ),
    )
    E_BITS = "E_BITS", "a picture of neither 8 nor 16 bits: write it with 8 or 16"
    E_BURNED_IN = (
        "E_BURNED_IN",
        (
            "the pixels may show who the patient is: inspect them, then pass `--allow E_BURNED_IN` "
            "or set `ingest.allow`; BurnedInAnnotation YES is always refused"
        ),
    )
    E_CHANGED = (
        "E_CHANGED",
        ("a study in the inbox changed while it was translated: no action is needed; the whole is translated anew"),
    )
    E_COLOR = "E_COLOR", ("colours where grey values are expected: read it with `read_colour`, or as a picture")
    E_DECODE = (
        "E_DECODE",
        (
            "a damaged header, an unknown syntax, a codec that fails, impossible bits, or a file "
            "that changed since it was found: export it again"
        ),
    )
    E_DETACHED = (
        "E_DETACHED",
        (
            "an NRRD or MetaImage header whose voxels are outside its folder, in several files, or "
            "missing: write one file"
        ),
    )
    E_DISK_FULL = (
        "E_DISK_FULL",
        ("the disk is full, or a quota is used up: free disk space and repeat; the inbox does so by itself"),
    )
    E_DOMAIN = "E_DOMAIN", ("the modality cannot be of this domain: correct the rule, or name the right domain")
    E_DUPLICATE = (
        "E_DUPLICATE",
        (
            "the same DICOM instance again, byte for byte, or a picture that is nearly the same as "
            "another of its domain: no action is needed; `ingest.duplicates` keeps such pictures"
        ),
    )
    E_DUPLICATE_DOMAIN = (
        "E_DUPLICATE_DOMAIN",
        ("another scan of the same session has been taken for this domain: make the rules more specific"),
    )
    E_DUP_CONFLICT = (
        "E_DUP_CONFLICT",
        (
            "one SOP instance UID with different content, or unequal numbers or times of images at "
            "the positions: keep one, or export each time point"
        ),
    )
    E_EMPTY = "E_EMPTY", ("the image, or the reference of a style, shows no body: all voxels have about the same value")
    E_EXISTS = "E_EXISTS", ("the output exists already, and nothing is ever overwritten: choose another name")
    E_FAULT = "E_FAULT", "an unexpected error of one study in the inbox: see its `reason.json`"
    E_FORMAT = (
        "E_FORMAT",
        ("a request that is not DICOM, NIfTI, PNG, JPEG, NPY or a zip of DICOM: send the file's bytes"),
    )
    E_GAP = (
        "E_GAP",
        ("distances between slices differ, or positions leave a straight line: add the slices, or set `ingest.gaps`"),
    )
    E_INCOMPLETE = (
        "E_INCOMPLETE",
        ("images of this series are damaged, or missing beside its other volumes: restore them, or `ingest.allow`"),
    )
    E_INPUT = "E_INPUT", ("an error of one study in the inbox that has no code of its own: see its `reason.json`")
    E_INTERLEAVED = (
        "E_INTERLEAVED",
        (
            "the slices of two volumes of one series alternate, so they may be one scan: look at"
            " them, then set `ingest.allow`"
        ),
    )
    E_KILLED = (
        "E_KILLED",
        (
            "a study in the inbox has ended the process twice, most often for want of memory: give it more, then move"
            " the study back into the inbox"
        ),
    )
    E_LOCALIZER = "E_LOCALIZER", "a localizer, scout or surview: it is no scan"
    E_MIXED_ORIENTATION = (
        "E_MIXED_ORIENTATION",
        (
            "single images in different orientations, or a NIfTI file whose qform, sform and "
            "pixdim disagree by more than 0.5 mm: export one orientation"
        ),
    )
    E_NOT_DICOM = (
        "E_NOT_DICOM",
        (
            "no DICOM content, an empty file, or not a regular file: no action is needed; rename a "
            "file that has a DICOM suffix by mistake"
        ),
    )
    E_NOT_FINITE = "E_NOT_FINITE", ("NaN or infinity among the voxels, or rescaled values beyond float32: replace them")
    E_NO_GEOMETRY = "E_NO_GEOMETRY", ("positions or orientation are missing or invalid: export the original images")
    E_NO_LABEL = "E_NO_LABEL", ("`ingest.labels` does not list this picture, and no rule matches its path alone")
    E_NO_PIXELS = "E_NO_PIXELS", "an image header without pixels"
    E_NO_RULE = "E_NO_RULE", "no rule in params.yaml assigns it a domain: add a rule, or leave it out"
    E_OUT_OF_DISTRIBUTION = (
        "E_OUT_OF_DISTRIBUTION",
        ("the input does not resemble the training images: check its domain, or override with `--force`"),
    )
    E_PAIR_APART = "E_PAIR_APART", ("less than half of the smaller body lies in the other: check the identities")
    E_PAIR_SHIFTED = (
        "E_PAIR_SHIFTED",
        ("the two scans fit better after a shift of 6 mm or more: `denoise.alignment: rigid`"),
    )
    E_PAIR_SPACE = (
        "E_PAIR_SPACE",
        ("the two scans have different frames of reference but are aligned by headers: `denoise.alignment: rigid`"),
    )
    E_PAIR_TURNED = (
        "E_PAIR_TURNED",
        ("the two scans fit better after a rotation of 6 degrees or more: `denoise.alignment: rigid`"),
    )
    E_PAIR_UNLIKE = (
        "E_PAIR_UNLIKE",
        (
            "the two scans share far less information than the other pairs, like scans of two "
            "people: check the identities"
        ),
    )
    E_REGISTRATION = "E_REGISTRATION", "no alignment of the two scans was found: check the identities"
    E_SERVER = "E_SERVER", "a server answered with an error: see its text"
    E_SHAPE = (
        "E_SHAPE",
        (
            "a single sagittal or coronal slice, or an NPY request that is not finite numbers (H, "
            "W) or (D, H, W): give the whole series"
        ),
    )
    E_SMALL = "E_SMALL", "a picture with fewer pixels than `ingest.min_pixels`"
    E_SOPCLASS = (
        "E_SOPCLASS",
        (
            "no image (structured report, segmentation, dose, DICOMDIR), a secondary capture "
            "without a position, or a cine: export the images themselves"
        ),
    )
    E_SUBJECT = (
        "E_SUBJECT",
        ("PatientID is empty, or `ingest.subject` does not match the path: set or correct `ingest.subject`"),
    )
    E_SYNTHETIC = "E_SYNTHETIC", ("a model made it, so it is not training data: use the original, or `ingest.allow`")
    E_TILT_NEEDS_RESAMPLE = (
        "E_TILT_NEEDS_RESAMPLE",
        (
            "a gantry tilt above 0.1 degrees: a usable DICOM volume with a sheared grid, which "
            "`ingest.tilt` straightens; a volume file with such a grid is refused"
        ),
    )
    E_TOO_LARGE = (
        "E_TOO_LARGE",
        ("more pixels, voxels or bytes than the limits allow: scale it down, or raise the limit"),
    )
    E_TRUNCATED = "E_TRUNCATED", ("fewer bytes than the header claims, or a codestream without its end: copy it again")
    E_UNIT = (
        "E_UNIT",
        (
            "CT values in no known unit: RescaleSlope and RescaleIntercept are missing, or RescaleType is not HU: "
            "export the original images"
        ),
    )
    E_UNREADABLE = (
        "E_UNREADABLE",
        (
            "a study in the inbox, or what is beside it, cannot be read, written or moved: correct what"
            " `waiting.json` names; it is tried again"
        ),
    )
    E_ZERO_SPACING = (
        "E_ZERO_SPACING",
        ("the distance of voxels is missing, zero or negative: export the original images"),
    )


# errors of the operating system that other files would meet too: a full disk, no file handles
NO_FILES_FAULT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})

USABLE: tuple[str, ...] = ("", Code.E_TILT_NEEDS_RESAMPLE)  # codes of images that are read without an override


class UserError(Exception):
    """Bad input or configuration. The command line prints the message and exits with code 2."""


class ParamsError(UserError):
    """An invalid value in params.yaml, on the command line or in the environment."""


class DataError(UserError):
    """Files or a data set that lack something that is needed."""


class ModelError(UserError):
    """A translator or a registered version that is missing, damaged or unsuitable."""


class TrainingError(UserError):
    """A training that stopped itself, because it would not have made a model."""


class OutputError(UserError):
    """An output that already exists or cannot be written."""


class DiskFull(OutputError):
    """A disk without room for an output, or a quota that is used up."""

    code = Code.E_DISK_FULL


class ServiceError(UserError):
    """A server, registry or scheduler that does not answer."""


class MissingPackage(UserError):
    """An optional package that is not installed."""


class Refusal(UserError):
    """An input that cannot be used.

    The message contains the numbers and the remedy, and never patient data.

    Example:
        >>> error = Refusal(Code.E_GAP, "slice 3 is missing")
        >>> str(error), error.code == "E_GAP"
        ('E_GAP: slice 3 is missing', True)
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = Code.__members__[code]
        self.reason = reason

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        """Return how another process can recreate the error."""
        return type(self), (self.code, self.reason)


@contextmanager
def reading(name: str = "") -> Iterator[None]:
    """Turn whatever a reader raises into a :class:`Refusal`: one bad file stops no run.

    Every call of a decoder happens within it. Errors that no file causes (:data:`NO_FILES_FAULT`)
    pass through.

    Args:
        name: of the file, which begins the reason.
    """
    start = name and f"{name}: "
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        reason = "needs more memory than there is; scale it down, or use a larger machine"
        raise Refusal(Code.E_TOO_LARGE, start + reason) from error
    except BaseException as error:  # decoders raise anything; a panic in Rust is not even an Exception
        if isinstance(error, OSError) and error.errno in NO_FILES_FAULT:
            raise
        reason = f"cannot be read ({type(error).__name__}): damaged, cut short or of an unknown kind; export it again"
        raise Refusal(Code.E_DECODE, start + reason) from error


def outline(error: BaseException) -> str:
    """Return the traceback of an unexpected error, without text that may be patient data.

    That is the case if the error passed through a module that is marked as handling patient data
    (:data:`MARK`); ``MEDSTYLE_DEBUG`` in the environment shows the message.
    """
    frames = (frame for one in _chain(error) for frame, _ in traceback.walk_tb(one.__traceback__))
    near = any(MARK in frame.f_globals for frame in frames)
    if not near or os.environ.get("MEDSTYLE_DEBUG"):
        return "".join(traceback.format_exception(error))
    lines = traceback.format_list(traceback.extract_tb(error.__traceback__))
    return f"{''.join(lines)}{type(error).__name__}: its text may hold patient data; MEDSTYLE_DEBUG=1 shows it\n"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
