"""Reports: one self-contained HTML page about a fit, from a posterior or from its file alone."""

from .material import Material, collect, from_file
from .page import render, write_report

__all__ = ["Material", "collect", "from_file", "render", "write_report"]
