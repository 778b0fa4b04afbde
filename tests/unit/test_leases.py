"""When a difference between slots in use and leases is corrected."""

from uuid import uuid4

import pytest
from prefect_server.leases import LOOKS, lasting_differences

LIMIT, OTHER = uuid4(), uuid4()


@pytest.mark.parametrize(
    ("seen", "corrected"),
    [
        ([1] * LOOKS, 1),
        ([3, 2, 4, 2, 3], 2),
        ([-2, -1, -1, -3, -1], -1),
        ([1] * (LOOKS - 1), None),
        ([1, 1, -1, 1, 1], None),
        ([1, 1, None, 1, 1], None),
    ],
)
def test_only_what_all_looks_saw_is_corrected(seen: list[int | None], corrected: int | None) -> None:
    looks = [{OTHER: 1} | ({} if difference is None else {LIMIT: difference}) for difference in seen]

    assert lasting_differences(looks).get(LIMIT) == corrected
