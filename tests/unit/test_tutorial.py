"""The Python that docs/add-a-pipeline.md asks its reader to write."""

import re

from infra.testing.stack import CHECKOUT

MAX_LINES = 40


def test_a_pipeline_of_ones_own_takes_at_most_forty_lines_of_python() -> None:
    page = (CHECKOUT / "docs/add-a-pipeline.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]

    assert "train(" in "\n".join(lines)
    assert len(lines) <= MAX_LINES
