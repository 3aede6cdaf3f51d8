"""One section of ``params.yaml`` -> the frozen dataclass of the stage that owns it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from medstyle.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def params(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose unknown keys and wrong types are errors when it is loaded."""
    cls.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclass(frozen=True)(cls)


def load(cls: type[T], section: str, path: Path | str = "params.yaml") -> T:
    """Read ``section`` of the YAML file ``path`` as ``cls``.

    Raises:
        UserError: the file or section is absent, a key is unknown or missing, or a value has the wrong type; the
            message names file, key and cause.
    """
    return parse(cls, _sections(Path(path)).get(section, {}), f"{path}: {section}")


def _sections(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root or name one with --params") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {line}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected sections such as 'train:' at the top level")
    return document


def parse(cls: type[T], values: object, where: str) -> T:
    """Check plain ``values`` (as YAML gives them) against ``cls``; ``where`` begins the error message."""
    from pydantic import ValidationError

    try:
        # JSON mode, because there a list may fill a tuple field although types are otherwise strict.
        return _adapter(cls).validate_json(json.dumps(values))  # type: ignore[arg-type]
    except TypeError as error:
        raise UserError(f"{where}: {error}; quote the value if it is meant as text") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        cause = {"unexpected_keyword_argument": "unknown key", "missing": "missing key"}.get(
            first["type"], f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
        )
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{key}: {cause}{more}") from None


@functools.cache
def _adapter(cls: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)
