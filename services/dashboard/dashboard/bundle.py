"""Write the JavaScript that draws charts in the browser: Vega-Embed with Vega and Vega-Lite, as vl-convert carries them.

The image's build runs it, so that a page fetches nothing from elsewhere: `python -m dashboard.bundle FILE`.
"""

import sys
from pathlib import Path

import vl_convert

if __name__ == "__main__":
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub knows no default
    Path(sys.argv[1]).write_text(script, encoding="utf-8")
