"""Pages made of notebooks: their links lead to pages of the site, and they ask no other server for a script."""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Any

from mkdocs.utils import get_relative_url

# Children of this logger are counted by mkdocs --strict.
LOG = logging.getLogger("mkdocs.hooks.tutorials")
# Of nbconvert's template: MathJax, which has no address here, and what loads Mermaid, which no tutorial uses.
MATHJAX = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.DOTALL)
MERMAID = re.compile(r'<script type="module">(?:(?!</script>).)*?mermaid.*?</script>', re.DOTALL)
LINK = re.compile(r'href="(?!#|[a-z]+:)([^"#]+)(#[^"]*)?"')
UNNAMED = "No description has been provided for this image"


def on_page_content(content: str, page: Any, files: Any, **_: Any) -> str:
    """The page of a notebook with links of the site and one to the notebook itself."""
    source = page.file.src_uri
    if not source.endswith(".ipynb"):
        return content
    here = posixpath.dirname(source)

    def resolved(found: re.Match[str]) -> str:
        target = files.get_file_from_path(posixpath.normpath(posixpath.join(here, found[1])))
        if target is None:
            LOG.warning("%s links to %s, which is not among the documentation files", source, found[1])
            return found[0]
        return f'href="{get_relative_url(target.url, page.url)}{found[2] or ""}"'

    content = LINK.sub(resolved, MERMAID.sub("", MATHJAX.sub("", content)))
    name = posixpath.basename(source)
    download = f'<p><a href="{name}" download>Download the notebook {name}</a></p>'
    return download + content.replace(UNNAMED, "What the code above draws")
