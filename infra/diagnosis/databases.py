"""Whether databases have the schema that the images expect, and all indexes of it."""

import re
import shlex
from typing import NamedTuple

from trainyard.diagnosis import Finding

REVISION = re.compile(r"^INSERT INTO public\.alembic_version\w* VALUES \('(\w+)'\);$", re.MULTILINE)
CREATE_INDEX = re.compile(r"^CREATE (?:UNIQUE )?INDEX (?:IF NOT EXISTS )?(\w+)\s[^;]*;", re.MULTILINE)
ADD_CONSTRAINT = re.compile(r"^ALTER TABLE [^;]*?\sADD CONSTRAINT (\w+) (?:PRIMARY KEY|UNIQUE)[^;]*;", re.MULTILINE)
COMMAND = "docker compose exec postgres psql --dbname {} --command {}"


class Schema(NamedTuple):
    """What a schema's SQL makes."""

    revision: str | None
    indexes: dict[str, str]
    """The statement that makes each index, by its name."""


def parse_schema(sql: str) -> Schema:
    """Return the revision and the indexes of a schema, also those of its keys."""
    statements = [*CREATE_INDEX.finditer(sql), *ADD_CONSTRAINT.finditer(sql)]
    revision = REVISION.search(sql)
    return Schema(revision[1] if revision else None, {found[1]: " ".join(found[0].split()) for found in statements})


def examine_database(name: str, schema: str, indexes: str, revision: str = "") -> list[Finding]:
    """Return what is wrong with the schema of a database.

    Args:
        name: The database's.
        schema: The SQL that makes an empty database what the image expects.
        indexes: The rows of `indexes.sql`, as psql prints them: NAME|VALID.
        revision: That of the database; empty where it has none.
    """
    expected = parse_schema(schema)
    present = dict(line.split("|") for line in indexes.splitlines())
    findings = []
    if expected.revision and revision and expected.revision != revision:
        problem = (
            f"The database {name} has the revision {revision}, and the image of its server expects {expected.revision}."
        )
        findings.append(
            Finding(problem, "make backup, then make up; or go back to the version that wrote the database")
        )
    for index, statement in sorted(expected.indexes.items()):
        if index not in present:
            problem = f"The database {name} lacks the index {index}, so that queries read whole tables."
            findings.append(Finding(problem, COMMAND.format(name, shlex.quote(statement))))
        elif present[index] != "t":
            problem = f"The index {index} of the database {name} is invalid: its creation was interrupted."
            findings.append(Finding(problem, COMMAND.format(name, shlex.quote(f"REINDEX INDEX {index}"))))
    return findings
