"""A challenger's shadow predictions beside the champion's of the same rows."""

from typing import Any

import pytest
from serving.comparison import describe_pairs, pair_rows


def record(names: list[str], inputs: list[list[Any]], outputs: list[list[Any]]) -> dict[str, Any]:
    """Return a record of a classifier with two classes."""
    columns = ["prediction", "probability_0", "probability_1"]
    return {"inputs": {"columns": names, "data": inputs}, "outputs": {"columns": columns, "data": outputs}}


def test_rows_are_paired_by_the_columns_that_the_challenger_uses() -> None:
    champion = record(["a", "b", "c"], [[1, 2, None], [3, 4, 5]], [[0, 0.75, 0.25], [1, 0.25, 0.75]])
    challenger = record(["c", "a"], [[None, 1], [5, 3], [5, 99]], [[1, 0.25, 0.75], [1, 0.0, 1.0], [0, 1.0, 0.0]])

    figures = describe_pairs(list(pair_rows([champion], [challenger])))

    assert figures == {
        "compared": 2,
        "agreement": 0.5,
        "mean_champion": 0.5,
        "mean_challenger": 0.875,
        "mean_absolute_difference": pytest.approx(0.375),
    }


def test_columns_that_only_the_challenger_uses_leave_no_pairs() -> None:
    champion, challenger = record(["a"], [[1]], [[0, 1, 0]]), record(["a", "b"], [[1, 2]], [[0, 1, 0]])

    assert list(pair_rows([champion], [challenger])) == []
    assert describe_pairs([])["agreement"] is None


def test_classes_have_an_agreement_and_no_mean() -> None:
    figures = describe_pairs([({"prediction": "a"}, {"prediction": "a"}), ({"prediction": "a"}, {"prediction": "b"})])

    assert (figures["agreement"], figures["mean_champion"]) == (0.5, None)


def test_predicted_numbers_have_a_mean_difference() -> None:
    figures = describe_pairs([({"prediction": 1.0}, {"prediction": 3.0}), ({"prediction": None}, {"prediction": 3.0})])

    assert figures["mean_absolute_difference"] == 2
