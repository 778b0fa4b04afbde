"""A challenger's shadow predictions compared with the champion's predictions of the same rows."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson

from serving.record_pages import FIRST_MOMENT, Selection, read_newest
from trainyard.contract import Column, Table
from trainyard.contract import Record as RecordFields

MAX_RECORDS = 200
"""Requests of the challenger that are compared, the newest ones."""
LEAD = timedelta(minutes=1)
"""By how much a champion's record may be older than the challenger's of the same request."""
Row = Mapping[str, Any]
Pair = tuple[Row, Row]


def compare_shadow(url: str, model: str, champion: int | None, since: datetime = FIRST_MOMENT) -> dict[str, Any]:
    """Compare the challenger's newest shadow predictions with the champion's of the same rows.

    Only figures are returned, neither inputs nor predictions.

    Args:
        url: The database's address.
        model: The registered model.
        champion: Its champion; None if it has none.
        since: The first moment.

    Returns:
        `challenger`, the version, None without shadow predictions; `champion`; `rows`, the challenger's; and the figures
        of `describe_pairs`.

    Raises:
        RecordsUnavailableError: The database does not answer.
    """
    shadow = parse(read_newest(url, Selection(model, since, shadow=True), MAX_RECORDS))
    challenger = shadow[0]["version"] if shadow else None
    shadow = [record for record in shadow if record["version"] == challenger]
    pairs: list[Pair] = []
    if shadow and champion is not None:
        oldest, newest = (datetime.fromisoformat(shadow[n]["at"]) for n in (-1, 0))
        period = Selection(model, oldest - LEAD, newest + LEAD, version=champion)
        pairs = list(pair_rows(parse(read_newest(url, period, 5 * MAX_RECORDS)), shadow))
    rows = sum(len(record["inputs"][Table.DATA]) for record in shadow)
    return {"challenger": challenger, "champion": champion, "rows": rows, **describe_pairs(pairs)}


def parse(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return records with their tables, which are JSON text as they are read."""
    parsed: list[dict[str, Any]] = orjson.loads(orjson.dumps(records))
    return parsed


def pair_rows(champions: Iterable[Mapping[str, Any]], shadow: Iterable[Mapping[str, Any]]) -> Iterator[Pair]:
    """Yield the champion's and the challenger's outputs of each row that both predicted.

    The same inputs name the same row, since a version predicts the same for them each time; a challenger may use fewer
    columns than the champion, in another order.
    """
    wanted: dict[tuple[str, ...], list[tuple[bytes, Row]]] = {}
    for record in shadow:
        names = tuple(sorted(record["inputs"][Table.COLUMNS]))
        wanted.setdefault(names, []).extend(rows_by_input(record, names))
    champions = list(champions)
    for names, rows in wanted.items():
        known = dict(pair for record in champions for pair in rows_by_input(record, names))
        yield from ((known[key], row) for key, row in rows if key in known)


def rows_by_input(record: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[bytes, Row]]:
    """Yield each row's inputs in the named columns, as a key, and its outputs; none if a column is not there."""
    inputs, outputs = record["inputs"], record["outputs"]
    if not set(names) <= set(inputs[Table.COLUMNS]):
        return
    positions = [inputs[Table.COLUMNS].index(name) for name in names]
    for given, predicted in zip(inputs[Table.DATA], outputs[Table.DATA], strict=True):
        key = orjson.dumps([given[position] for position in positions])
        yield key, dict(zip(outputs[Table.COLUMNS], predicted, strict=True))


def describe_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return how far two versions' predictions of the same rows agree.

    Returns:
        `compared`, the number of pairs; `agreement`, the share of equal predictions; and of numbers, which are the
        probability of the second class where there are two, `mean_champion`, `mean_challenger` and
        `mean_absolute_difference`. What is not known is None.
    """
    numbers = [(to_number(one), to_number(other)) for one, other in pairs]
    known = [(one, other) for one, other in numbers if one is not None and other is not None]
    equal = [one[Column.PREDICTION] == other[Column.PREDICTION] for one, other in pairs]
    return {
        "compared": len(pairs),
        "agreement": statistics.fmean(equal) if equal else None,
        "mean_champion": statistics.fmean(one for one, _ in known) if known else None,
        "mean_challenger": statistics.fmean(other for _, other in known) if known else None,
        "mean_absolute_difference": statistics.fmean(abs(one - other) for one, other in known) if known else None,
    }


def to_number(outputs: Row) -> float | None:
    """Return the probability of the second of two classes, or a number that is predicted; None for other classes."""
    probabilities = [name for name in outputs if name.startswith(RecordFields.PROBABILITY_PREFIX)]
    if len(probabilities) == 2:
        value = outputs[f"{RecordFields.PROBABILITY_PREFIX}1"]
    else:
        value = None if probabilities else outputs[Column.PREDICTION]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
