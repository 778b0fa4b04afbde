"""The migrations that an image has of its server's database, and the refusal of a database that a later version has migrated."""

import importlib.util
import re
from pathlib import Path


def known_revisions(package: str, folder: str) -> frozenset[str]:
    """Return the revisions that this image has migrations for, read from their files: importing a server takes seconds.

    Args:
        package: The server's.
        folder: Where its migrations are in that.
    """
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    files = Path(found.submodule_search_locations[0], folder).glob("*.py")
    revisions = (re.search(r"""^revision = ["'](\w+)["']$""", file.read_text(), re.MULTILINE) for file in files)
    return frozenset(revision[1] for revision in revisions if revision)


def refuse_newer(server: str, database: str, current: str, known: frozenset[str]) -> None:
    """Return if a database's revision is one of this image's.

    Args:
        server: Its name for people.
        database: How its database is called in a sentence.
        current: The database's revision.
        known: Those of the image.

    Raises:
        SystemExit: It is not: a newer version has migrated the database, and this one would damage it.
    """
    if current not in known:
        raise SystemExit(
            f"{server} does not start, because it is older than its {database}, which has the revision {current}: start the "
            "version of Trainyard that ran last, or restore a backup of this one (docs/operations.md, Upgrade)."
        )
