import pytest

from medstyle.door.settings import Dicom, Params, Tls, Web
from medstyle.errors import UserError
from medstyle.params import load, parse

WHOLE = """
door:
  callers: [PACS]
  tls: {certificate: a.pem, key: a.key}
  routes:
    - {kind: dicom, name: pacs, ae_title: PACS, host: pacs.example}
    - {kind: dicomweb, name: web, url: "https://archive.example/dicom-web"}
  polls:
    - {url: "https://archive.example/dicom-web", filter: {ModalitiesInStudy: MR}}
"""


def test_both_kinds_of_route_are_read(tmp_path):
    (tmp_path / "params.yaml").write_text(WHOLE)
    params = load(Params, "door", tmp_path / "params.yaml")
    assert params.tls == Tls("a.pem", "a.key")
    assert params.routes == (
        Dicom("dicom", "pacs", "PACS", "pacs.example", 104),
        Web("dicomweb", "web", "https://archive.example/dicom-web"),
    )
    assert params.polls[0].filter == {"ModalitiesInStudy": "MR"}


def test_without_settings_nobody_may_call_from_elsewhere():
    params = parse(Params, {}, "door")
    assert (params.callers, params.host, params.routes) == ((), "127.0.0.1", ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"caller": ["PACS"]},
        {"ae_title": "A" * 17},
        {"port": 70000},
        {"quiet_s": 0},
        {"routes": [{"kind": "ftp", "name": "x"}]},
        {"routes": [{"kind": "dicom", "name": "x"}]},
        {"routes": [{"kind": "dicomweb", "name": "x", "url": "http://a"}] * 2},
    ],
)
def test_what_cannot_work_is_refused(wrong):
    with pytest.raises(UserError, match="door"):
        parse(Params, wrong, "door")
