"""The frame of a result's page: its style, light and dark, and the tables on it.

A page is one file. Its content security policy lets nothing run and nothing load; pictures
stand in it as SVG and take their ink from the page (`researcher.plots.svg`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Final

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>FedCare: $title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2b36; --soft: #5b6b78; --line: #e3e8ec;
  --paper: #ffffff; --tint: #f5f8f9; --accent: #0f4c5c; --grey: #98a4ae; --pale: #dfe5ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4ebf0; --soft: #a3b1bc; --line: #33434f;
  --paper: #18232c; --tint: #10181f; --accent: #6fb7cb; --grey: #7f8d98; --pale: #3a4a56; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
header { background: #0f4c5c; color: #fff; padding: 32px 0; }
header > div, main { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header p { margin: 8px 0 0; color: #dcebef; }
h1 { font-size: 28px; margin: 0; font-weight: 650; }
h2 { font-size: 20px; margin: 0 0 12px; font-weight: 650; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 24px 28px; margin: 20px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
.one { width: 100%; border-bottom: 1.5px solid var(--ink); }
.scroll { overflow-x: auto; }
td, th { padding: 4px 10px; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 4px; }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink);
  font-weight: 600; padding: 7px 10px; }
tr.head td { font-weight: 600; padding-top: 10px; }
tr.in td:first-child { padding-left: 24px; }
section p { color: var(--soft); font-size: 14px; margin: 12px 0 0; max-width: 860px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 20px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.curve { max-width: 760px; }
footer { color: var(--soft); font-size: 13px; padding-bottom: 40px; }
@media print { body { background: none; } section { break-inside: avoid; border: 0; } }
</style>
</head>
<body>
<header><div><h1>$title</h1><p>$lead</p></div></header>
<main>$body
<footer>$footer</footer></main>
</body>
</html>
""")


def framed(title: str, lead: str, body: str, footer: str) -> str:
    """Return a whole page; all but `body`, which is HTML, are plain text."""
    return _PAGE.substitute(
        title=escape(title), lead=escape(lead), body=body, footer=escape(footer)
    )


def plain_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts, which are escaped."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a new or empty folder; return its absolute path.

    Raises:
        ConfigError: OUTPUT_EXISTS. StateError: DISK.
    """
    from common.errors import StateError
    from researcher.release import require_empty

    folder = require_empty(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise StateError("DISK", f"{folder}: {error.strerror}") from None
    return folder
