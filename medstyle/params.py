"""Load a section of ``params.yaml`` as the frozen dataclass of the stage that owns it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from medstyle.errors import ParamsError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def params(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass that rejects unknown keys and wrong types on loading."""
    cls.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


def load(cls: type[T], section: str, path: Path | str = "params.yaml") -> T:
    """Read ``section`` of the YAML file ``path`` as ``cls``.

    Raises:
        UserError: the file is missing, a key is unknown or missing, or a value has the wrong type;
            the message names file, key and cause.
    """
    return parse(cls, _sections(Path(path)).get(section, {}), f"{path}: {section}")


def _sections(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the project's root or name one with --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ParamsError(f"{path}: not valid YAML: {line}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{path}: expected sections such as 'train:' at the top level")
    return document


# former names of keys in params.yaml -> last part of the new name, for the error message
RENAMED = {
    "denoise.registration": "alignment",
    "denoise.atlas": "common_space",
    "train.network.repainted": "levels_without_skip",
    "evaluate.steady": "temporal_smoothing",
    "register.survival": "lesion_contrast",
}


def parse(cls: type[T], values: object, where: str) -> T:
    """Check plain ``values`` (as loaded from YAML) against ``cls``.

    ``where`` begins the error message.

    Raises:
        UserError: a key is unknown, renamed or missing, or a value has the wrong type.
    """
    try:
        # JSON mode, because it accepts a list for a tuple although types are strict otherwise.
        return parse_json(cls, json.dumps(values), where)
    except TypeError as error:
        raise ParamsError(f"{where}: {error}; quote the value if it is meant as text") from None


def parse_json(cls: type[T], text: str | bytes, where: str) -> T:
    """Check JSON against ``cls``; see :func:`parse`."""
    from pydantic import ValidationError

    try:
        return _adapter(cls).validate_json(text)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *_keys(first["loc"], text)])
        cause = {"unexpected_keyword_argument": "unknown key", "missing": "missing key"}.get(
            first["type"], f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
        )
        if new := next((new for old, new in RENAMED.items() if key.endswith(old)), None):
            cause = f"has been renamed to {new}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ParamsError(f"{key}: {cause}{more}") from None


def _keys(location: tuple[int | str, ...], text: str | bytes) -> list[str]:
    """Return the keys that lead to an error; pydantic inserts the tags of unions between them."""
    value: Any = json.loads(text) if location else None
    keys = []
    for part in location:
        known = (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        )
        if known or part is location[-1]:
            keys.append(str(part))
            value = value[part] if known else None
    return keys


@functools.cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
