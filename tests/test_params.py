import pytest

from medstyle.errors import UserError
from medstyle.params import load, params


@params
class Inner:
    rate: float = 1.0


@params
class Outer:
    name: str
    size: tuple[int, int] = (1, 2)
    inner: Inner = Inner()


def read(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    return load(Outer, "part", tmp_path / "params.yaml")


def test_values_are_read_and_the_others_are_defaults(tmp_path):
    assert read(tmp_path, "part: {name: a, size: [3, 4], inner: {rate: 2}}") == Outer("a", (3, 4), Inner(2.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {name: a, colour: 1}", "part.colour: unknown key"),
        ("part: {name: a, inner: {rat: 1}}", "part.inner.rat: unknown key"),
        ("part: {name: a, inner: {rate: fast}}", "part.inner.rate: input should be a valid number, got 'fast'"),
        ("part: {name: 3}", "part.name: input should be a valid string, got 3"),
        ("part: {}", "part.name: missing key"),
        ("part: {name: a, size: [1]}", "part.size"),
        ("part: {name: 2020-01-01}", "quote the value"),
        ("part: [", "not valid YAML"),
        ("- 1", "expected sections"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path, text, message):
    with pytest.raises(UserError, match=r"params\.yaml") as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(Outer, "part", tmp_path / "none.yaml")
