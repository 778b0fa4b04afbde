"""What ends a backup or a restore, as one sentence for people."""


class BackupError(Exception):
    """A backup or a restore that cannot go on; the message says what is wrong and what to do."""
