"""Every estimator of docs/models.md is saved without code, loaded with reviewed types alone, and answers as offline."""

import gc
import re
from collections.abc import Iterator

import pytest
from serving.decoding import DecodingProcess
from threadpoolctl import threadpool_limits

from infra.testing.servers import CHECKOUT
from tests.support.estimators import ESTIMATORS
from tests.support.parity import LIMITS, Case, compare

FRAMES = 1


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingProcess]:
    """The process that decodes Arrow and Parquet."""
    process = DecodingProcess(LIMITS)
    gc.freeze()  # loading collects garbage, which takes longer in a test's process than all else
    with threadpool_limits(1):
        yield process
    gc.unfreeze()
    process.stop()


@pytest.mark.parametrize("case", ESTIMATORS, ids=lambda case: case.name)
def test_the_served_prediction_is_the_offline_one_bit_for_bit(case: Case, decoding: DecodingProcess) -> None:
    same = compare(case, decoding, FRAMES)

    assert sum(same.values()) == 5 * FRAMES


def test_the_table_of_the_docs_names_exactly_the_estimators_that_are_compared() -> None:
    text = (CHECKOUT / "docs/models.md").read_text()
    section = text.partition("## Estimators")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    named = {name for line in table for name in re.findall(r"`([A-Z]\w+)`", line)}

    assert named == {name for case in ESTIMATORS for name in case.name.split(", ") if name[0].isupper()}
