"""What the service does with the memory of models that it drops."""

import gc
import weakref

from serving.memory import give_back


class Cycle:
    """An object that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_left_is_kept_from_further_collections_until_more_is_given_back() -> None:
    try:
        dropped = Cycle()
        reference = weakref.ref(dropped)
        give_back()
        frozen = gc.get_freeze_count()
        del dropped
        gc.collect()
        kept = reference()
        give_back()

        assert frozen > 10_000
        assert kept is not None
        del kept
        give_back()
        assert reference() is None
    finally:
        gc.unfreeze()
