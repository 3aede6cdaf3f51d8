"""What a job says and offers."""

from pathlib import Path

from medstyle.studio.place import Place

FOLDER = "0123456789abcdef"


def test_an_error_names_the_remedy_and_no_folder_of_the_server():
    place = Place(Path("/tmp/s"), Path("/tmp/s/jobs/1"), "models/translator", print)
    said = place.cleaned(f"/tmp/s/sets/{FOLDER}/study: image 1 does not resemble ...; or override with --force")
    assert said == "study: image 1 does not resemble ...; or tick “Translate anyway”"
    assert place.cleaned(f"/tmp/s/sets/{FOLDER}: no usable image") == "no usable image"
    assert place.cleaned("/tmp/s/jobs/1/made/a.png: exists") == "made/a.png: exists"


def test_what_is_offered_has_a_media_type_that_no_browser_runs():
    place = Place(Path("/tmp/s"), Path("/tmp/s/jobs/1"), "models/translator", print)
    for suffix in (".html", ".svg", ".js", ".xml", ""):
        name = place.offer(f"a{suffix}", Path(f"/tmp/s/a{suffix}"))
        assert place.files[name]["media"] == "application/octet-stream"
