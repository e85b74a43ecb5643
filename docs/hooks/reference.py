"""Reference pages: names below a section's heading are one level deeper than on pages without sections."""

from __future__ import annotations

import re
from typing import Any

NAME = re.compile(r"^::: \S+$", re.MULTILINE)
DEEPER = "\n    options:\n      heading_level: 3"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's source, with the level of its names."""
    if not page.file.src_uri.startswith("reference/"):
        return markdown
    before, heading, sections = markdown.partition("\n## ")
    return before + heading + NAME.sub(lambda name: name[0] + DEEPER, sections)
