"""Describe every key of params.yaml by the dataclasses that read it, as text and JSON schema."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import sys
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from medstyle.errors import ParamsError

STAGES = ("acquire", "ingest", "denoise", "train", "evaluate", "register")
SECTIONS = (*STAGES, "door")  # of params.yaml; the last is read by `medstyle listen` alone


class Entry(NamedTuple):
    """A key of params.yaml: its path from the section on, its type, default and meaning."""

    path: str
    kind: str
    default: str
    meaning: str


def section(name: str) -> type:
    """Return the dataclass that reads a section of params.yaml."""
    module = f"medstyle.stages.{name}" if name in STAGES else f"medstyle.{name}.settings"
    parameters: type = importlib.import_module(module).Params
    return parameters


def entries(key: str = "") -> list[Entry]:
    """List the keys at or below ``key``; the keys of all kinds of objective are listed once.

    Raises:
        ParamsError: there is no such key.
    """
    found = {one.path: one for stage in SECTIONS for one in _entries(section(stage), stage)}
    below = [one for path, one in found.items() if not key or path == key or path.startswith(f"{key}.")]
    if not below:
        raise ParamsError(f"{key}: no such key; `medstyle params` lists them all")
    return below


def _entries(cls: type, path: str) -> Iterator[Entry]:
    hints, extras, docs = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True), field_docs(cls)
    for field in dataclasses.fields(cls):
        inner = list(dict.fromkeys(dataclasses_in(hints[field.name])))
        kind = "section" if inner else type_text(hints[field.name])
        meaning = " ".join(filter(None, [docs.get(field.name, ""), limits_text(extras[field.name])]))
        yield Entry(f"{path}.{field.name}", kind.replace("`", ""), default_text(field).replace("`", ""), meaning)
        for one in inner:
            yield from _entries(one, f"{path}.{field.name}")


def schema() -> dict[str, Any]:
    """Return the JSON schema of params.yaml (draft 2020-12), for editors."""
    from pydantic import TypeAdapter

    definitions: dict[str, Any] = {}
    sections = {}
    for stage in SECTIONS:
        one = TypeAdapter(section(stage)).json_schema(ref_template="#/$defs/{model}")
        definitions |= one.pop("$defs", {})
        docs = field_docs(section(stage))
        for name, said in one.get("properties", {}).items():
            if name in docs:
                said["description"] = docs[name]
        sections[stage] = one
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml of medstyle",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }


def field_docs(cls: type) -> dict[str, str]:
    """Return the strings that stand below the fields of a dataclass and of what it inherits
    from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        module = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        body = next(
            node.body for node in ast.walk(module) if isinstance(node, ast.ClassDef) and node.name == base.__name__
        )
        for field, text in itertools.pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    found[name] = " ".join(doc.split())
    return found


def dataclasses_in(hint: Any) -> Iterator[type]:
    """Find the dataclasses in a type, however deep in unions and tuples."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def type_text(hint: Any) -> str:
    """Spell a type as the value of a YAML file: a choice, a number, a list, a mapping."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple and arguments[-1:] != (...,):
        return f"list of {len(arguments)}: {', '.join(dict.fromkeys(map(type_text, arguments)))}"
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if arguments:  # a union
        return " or ".join(map(type_text, arguments))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def limits_text(hint: Any) -> str:
    """Say the limits that an annotation such as ``Field(ge=0)`` holds."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    marks = [mark for item in getattr(hint, "__metadata__", ()) for mark in [item, *getattr(item, "metadata", [])]]
    said = [f"{word} {getattr(mark, key)}" for key, word in words.items() for mark in marks if hasattr(mark, key)]
    said = [text for text in dict.fromkeys(said) if not text.endswith("None")]
    return f"Limits: {', '.join(said)}." if said else ""


def default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    return "" if dataclasses.is_dataclass(value) else f"`{json.dumps(value)}`"
