import pytest

from medstyle.cohort.rules import Rule, domain_of
from medstyle.errors import UserError

RULES = (
    Rule("mr_flair", {"Modality": "MR", "SeriesDescription": "*flair*"}),
    Rule("mr_t1", {"Modality": "MR", "SeriesDescription": "*T1*"}),
    Rule("photo", {"path": "photo/*"}),
)


@pytest.mark.parametrize(
    ("attributes", "domain"),
    [
        ({"Modality": "MR", "SeriesDescription": "AX T1 SE"}, "mr_t1"),
        ({"Modality": "MR", "SeriesDescription": "T1 FLAIR"}, "mr_flair"),
        ({"Modality": "CT", "SeriesDescription": "T12 VERTEBRA"}, None),
        ({"path": "photo/a/b.png"}, "photo"),
        ({}, None),
    ],
)
def test_first_match_wins(attributes, domain):
    assert domain_of(attributes, RULES) == domain


def test_a_rule_must_mean_something():
    with pytest.raises(UserError, match="unknown domain"):
        Rule("mr_t9", {"path": "*"})
    with pytest.raises(UserError, match="every input"):
        Rule("ct", {})
