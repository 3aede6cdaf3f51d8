"""The documentation is current: generated pages, links, anchors, commands, width of the prose."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
names = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated():
    return generator().pages()


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def code(page: Path) -> str:
    """Return a page's blocks of code and code within lines, each from the start of a line."""
    text = page.read_text(encoding="utf-8")
    return "\n".join([*FENCE.findall(text), *re.findall(r"`([^`]+)`", FENCE.sub("", text))])


def anchors(page: Path) -> set[str]:
    """Return the addresses of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)  # noqa: PLW2901
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found)
        found.append(f"{slug}-{repeated}" if repeated else slug)
    return set(found)


def test_the_generated_pages_are_current(generated):
    old = [path.name for path, text in generated.items() if not path.is_file() or path.read_text("utf-8") != text]
    assert not old, "run `make docs`"
    written = {path for path in (ROOT / "docs/reference").glob("*.md") if "docs/generate.py" in path.read_text("utf-8")}
    assert written == set(generated), "a page that is no longer made"


def test_the_tree_lists_every_module(generated):
    tree = generated[ROOT / "docs/reference/tree.md"]
    for part in ("medstyle", "flows"):
        for path in (ROOT / part).rglob("*.py"):
            if path.stem != "__init__":
                section = tree.partition(f"## {path.parent.relative_to(ROOT).as_posix()}/\n")[2].partition("\n## ")[0]
                assert f"| `{path.name}` |" in section, path
    for name in generator().FILES:
        assert (ROOT / name).exists(), name


def test_every_reference_page_is_in_the_index(generated):
    listed = set(LINK.findall(generated[ROOT / "docs/reference/README.md"]))
    assert listed == {path.name for path in (ROOT / "docs/reference").glob("*.md")} - {"README.md"}


@names
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_reachable_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(prose(page)) if not re.match(r"\w+:", link)]
        waiting += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert set(PAGES) <= seen


@names
def test_commands_exist(page):
    from medstyle.cli import app

    text = code(page)
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"(?:^|\| )medstyle ([a-z]+)", text, re.MULTILINE)) <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) <= targets
    flows = {path.stem for path in (ROOT / "flows").glob("*.py")}
    assert set(re.findall(r"python -m flows\.(\w+)", text)) <= flows
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file(), script


@names
def test_files_that_are_named_exist(page):
    for name in re.findall(
        r"(?<![\w./-])(?:medstyle|flows|tests|benchmarks|docs|recipes)/[\w./-]*[\w/](?![\w<])", code(page)
    ):
        assert (ROOT / name).exists(), name


@names
def test_prose_is_at_most_100_columns_wide(page):
    lines = [line.strip() for line in prose(page).splitlines() if len(line) > 100]
    exempt = re.compile(r"\||(?:[-*] )?!?\[[^]]*\]\(\S+\)[.,;]?$|<?https?://\S+$")  # tables, links alone
    assert [line for line in lines if not exempt.match(line)] == []


def test_the_diagram_shows_the_layers_in_their_order():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in settings["contracts"] if "containers" in contract]
    page = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    diagram = next(block for block in FENCE.findall(page) if "entrances" in block)
    rooms = ["flows", *(room for layer in layers for room in layer.split(" | "))]
    places = [re.search(rf"\b{room}\b", diagram) for room in rooms]
    assert all(places)
    assert [place.start() for place in places] == sorted(place.start() for place in places)


def test_every_parameter_that_is_named_exists(generated):
    known, section = set(), ""
    for line in generated[ROOT / "docs/reference/parameters.md"].splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").partition(" ")[0]
        elif key := re.match(r"\| `(\w+)` \|", line):
            known.add(f"{section}.{key[1]}")
        known |= {f"train.objective.weights.{term}" for term in re.findall(r"`(\w+): [\d.]+`", line)}
    stages = {name.partition(".")[0] for name in known}
    groups = {name.split(".")[1] for name in known if name.startswith("train.") and name.count(".") > 1}
    for page in PAGES:
        if page.name == "CHANGELOG.md" or page in generated:
            continue
        for name in re.findall(r"(?<![\w./-])[a-z]+(?:\.[a-z]\w*)+", code(page)):
            first = name.partition(".")[0]
            full = f"train.{name}" if first in groups else name
            if first in stages | groups and not name.endswith((".py", ".json", ".csv", ".html")):
                assert full in known | {f"train.{group}" for group in groups}, f"{page.relative_to(ROOT)}: {name}"
