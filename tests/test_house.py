"""The structure of the project: short functions, rooms of similar size, sorted listings."""

import ast
from collections import Counter

import pytest

from tests.conftest import ROOT

MODULES = sorted([*(ROOT / "medstyle").rglob("*.py"), *(ROOT / "flows").glob("*.py")])
LINES, PARAMETERS, SHARE = 60, 7, 0.15
COMMANDS = ROOT / "medstyle/cli.py"  # the parameters of a command are the options that its users see


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield node, len([one for one in arguments if one.arg not in ("self", "cls")])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_take_few_parameters_or_say_why(path):
    for node, parameters in functions(path):
        told = "parameters, because" in (ast.get_docstring(node) or "")
        assert node.end_lineno - node.lineno < LINES, f"{node.name} has more than {LINES} lines"
        assert parameters <= PARAMETERS or told or path == COMMANDS, f"{node.name} takes {parameters} parameters"


def test_no_room_holds_more_than_its_share_of_the_lines():
    lines = Counter()
    for path in MODULES:
        lines["/".join(path.relative_to(ROOT).parts[:2])] += len(path.read_text().splitlines())
    room, most = lines.most_common(1)[0]
    assert most <= SHARE * lines.total(), f"{room} holds {most / lines.total():.1%}"


LISTS = ("iterdir", "glob", "rglob")
ORDERLESS = ("any", "sorted", "set", "max", "min", "len")  # of these calls the order of the arguments is no matter


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_order_of_files_is_never_left_to_the_disk(path):
    """A folder is listed only in calls that sort it or do not depend on the order."""
    tree = ast.parse(path.read_text())
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ORDERLESS
        removes = isinstance(node, ast.For) and any(name in ast.unparse(node.body) for name in (".unlink(", "rmtree("))
        if call or removes:
            inside |= set(ast.walk(node))
    listed = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") in LISTS]
    assert [node.lineno for node in listed if node not in inside] == []
