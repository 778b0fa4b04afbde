"""The files of uploads on their way to the artifact store."""

import shutil
from collections.abc import Mapping
from pathlib import Path


def clear_uploads(environment: Mapping[str, str]) -> None:
    """Delete what a server that was killed left in UPLOADS_FOLDER, a folder of this server alone; nothing without it.

    Call it before the server starts.
    """
    if not environment.get("UPLOADS_FOLDER"):
        return
    for left in Path(environment["UPLOADS_FOLDER"]).iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
