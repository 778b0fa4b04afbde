"""Write the JavaScript that draws the charts: Vega-Embed with Vega and Vega-Lite, from vl-convert.

Usage: python -m dashboard.bundle FILE. The image's build runs it, so that pages load nothing from other hosts.
"""

import sys
from pathlib import Path

import vl_convert

if __name__ == "__main__":
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the type stub lacks its default
    Path(sys.argv[1]).write_text(script, encoding="utf-8")
