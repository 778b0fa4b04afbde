"""Back up an installation into a restic repository, and restore it from there."""
