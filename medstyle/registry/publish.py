"""Make a signed file of a registered version, or of a translator folder, for others to install."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from medstyle.catalogue.keys import fingerprint, public_of, signing_key
from medstyle.catalogue.package import FORMAT, Manifest, write_package
from medstyle.catalogue.store import INDEX, add_to_index
from medstyle.errors import ModelError, OutputError
from medstyle.networks.translator import Translator
from medstyle.registry.models import described, model_folder


def publish(reference: str, out: Path, key: Path, licence: str, name: str = "medstyle") -> tuple[Path, Manifest, str]:
    """Write ``name-version.zip`` into the folder ``out``, and enter it into the index there.

    Args:
        reference: a version, ``models:/...``, or a translator folder, whose version is the begin of
            the hash of its weights.
        out: folder of the packages; made if missing.
        key: private key; made if missing.
        licence: SPDX identifier of the weights.
        name: of the model in catalogues.

    Returns:
        the package, its manifest, and the fingerprint of the key.

    Raises:
        UserError: there is no such model, or the package exists already.
    """
    folder = model_folder(reference)
    translator = Translator.load(folder)
    config, version, facts = translator.config, translator.sha256[:12], dict[str, Any]()
    number = reference.removeprefix("models:/medstyle/")
    if number.isdigit() and not Path(reference).exists():
        version, facts = number, described(number)
    about = Manifest(
        FORMAT,
        re.sub(r"[^a-z0-9._-]", "-", name.lower()),
        version,
        task=f"{config.source} -> {config.target}",
        inputs=tuple(dict.fromkeys((config.source, *config.contrasts))),
        licence=licence,
        weights_sha256=translator.sha256,
        medstyle=version_of("medstyle"),
        gate=facts.get("gate", "not asked"),
        figures={key: round(float(value), 6) for key, value in facts.get("table", {}).get("model", {}).items()},
    )
    place = out / f"{about.name}-{about.version}.zip"
    if place.exists():
        raise OutputError(f"{place}: exists already; a published version does not change")
    if not licence.strip():
        raise ModelError("a model without a licence cannot be used; name one with --licence")
    private, _ = signing_key(key)
    out.mkdir(parents=True, exist_ok=True)
    manifest = write_package(folder, about, place, private)
    add_to_index(out / INDEX, place, manifest)
    return place, manifest, fingerprint(public_of(private))
