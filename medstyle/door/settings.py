"""Say what `medstyle listen` may do: the section `door` of params.yaml."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from medstyle.errors import ParamsError
from medstyle.params import params

AETitle = Annotated[str, Field(min_length=1, max_length=16)]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@params
class Tls:
    """Encryption of DICOM associations (PS3.15 B.12); files in PEM.

    With ``authority``, both sides must show a certificate that it has signed.
    """

    certificate: str = ""
    """Certificate that this side shows."""
    key: str = ""
    """Its private key."""
    authority: str = ""
    """Certificates of the authorities that the other side is checked against."""


@params
class Dicom:
    """An archive that takes results by C-STORE."""

    kind: Literal["dicom"]
    """C-STORE."""
    name: str
    """Name of the route in logs, metrics and the ledger; do not change it."""
    ae_title: AETitle
    """Application entity title of the archive."""
    host: str
    """Its address."""
    port: Port = 104
    """Its port."""
    tls: Tls | None = None
    """Encrypt the associations to this archive."""
    commitment: bool = True
    """Ask for storage commitment, if the archive offers it."""


@params
class Web:
    """An archive with DICOMweb (PS3.18): results go there by STOW-RS."""

    kind: Literal["dicomweb"]
    """STOW-RS."""
    name: str
    """Name of the route in logs, metrics and the ledger; do not change it."""
    url: str
    """Root of the services, such as `https://archive/dicom-web`."""
    user: str = ""
    """User name, if the archive asks for one."""
    password_file: str = ""
    """File with the password."""


@params
class Poll:
    """A DICOMweb archive that is asked for studies (QIDO-RS), which are fetched (WADO-RS)."""

    url: str
    """Root of the services, such as `https://archive/dicom-web`."""
    filter: dict[str, str] = field(default_factory=dict)
    """Attributes of the studies that are wanted, such as `{ModalitiesInStudy: MR}`."""
    every_s: Positive = 60.0
    """Seconds between two questions."""
    user: str = ""
    """User name, if the archive asks for one."""
    password_file: str = ""
    """File with the password."""


@params
class Params:
    """What `medstyle listen` takes, from whom, and where results go; no stage reads it."""

    ae_title: AETitle = "MEDSTYLE"
    """Application entity title of the door."""
    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for every interface."""
    port: Port = 11112
    """Port to listen on."""
    callers: tuple[AETitle, ...] = ()
    """AE titles that may call; all others are refused."""
    quiet_s: Positive = 30.0
    """A study is complete when nothing of it has arrived for so many seconds."""
    associations: Count = 10
    """Largest number of associations at once."""
    associations_per_minute: Count = 600
    """Largest number of associations that a caller may begin in a minute."""
    instance_mb: Count = 512
    """Largest size of an instance in MiB; an association that sends more is cut."""
    study_instances: Count = 20000
    """Largest number of instances of a study."""
    free_mb: Annotated[int, Field(ge=0)] = 1024
    """Free space in MiB below which nothing more is taken."""
    silence_s: Positive = 60.0
    """An association that says nothing for so many seconds is cut."""
    tls: Tls | None = None
    """Take encrypted associations only."""
    polls: tuple[Poll, ...] = ()
    """DICOMweb archives that are asked for studies."""
    routes: tuple[Dicom | Web, ...] = ()
    """Archives that results are sent to; each gets every result."""
    retry_s: Positive = 5.0
    """Seconds before a failed delivery is tried again; they double up to an hour."""
    refusals: Count = 10
    """A delivery that the archive itself refuses so often is given up, and reported."""
    commitment_s: Positive = 600.0
    """Seconds to wait for an archive's word on storage commitment before it is asked again."""
    uncertainty: bool = True
    """Also send a map of the uncertainty."""
    report: bool = True
    """Also send a structured report on what was made."""
    metrics_port: Port = 9112
    """Port of `/health` and `/metrics` on `host`; 0: any that is free."""

    def __post_init__(self) -> None:
        names = [route.name for route in self.routes]
        if len(set(names)) < len(names):
            raise ParamsError("door.routes: two have the same name, by which deliveries are remembered; rename one")
