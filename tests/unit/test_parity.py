"""Served predictions are the offline ones, bit for bit: estimators by column types by formats, on generated frames.

`python -m tests.support.parity` compares all cases with more frames.
"""

from collections.abc import Iterator

import pytest
from serving.decoding import DecodingProcess

from tests.support.parity import CASES, LIMITS, Case, compare

FRAMES = 3
SOME = [*CASES[::4], *(case for case in CASES if "string?" in case.columns.values())]


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingProcess]:
    """The process that decodes Arrow and Parquet."""
    process = DecodingProcess(LIMITS)
    yield process
    process.stop()


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_the_served_prediction_is_the_offline_one_bit_for_bit(case: Case, decoding: DecodingProcess) -> None:
    same = compare(case, decoding, FRAMES)

    assert sum(same.values()) == 5 * FRAMES
