"""A hospital's own report on a released model, as a page: it stays in the node's state.

The same figures as `reports/RUN.json`, already without small counts
(`hospital_node.disclosure.shown_figures`), for people: no script runs in it and nothing loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:760px;margin:40px auto;padding:0 20px;"
    "color:#1d2b36}table{border-collapse:collapse;width:100%}td,th{padding:7px 8px;"
    "border-top:1px solid #e3e8ec;text-align:right}td:first-child,th:first-child{text-align:left}"
    "code{word-break:break-all}"
)


def page(run_id: str, model_sha256: str, figures: Mapping[str, object]) -> str:
    """Return the HTML page of one released model over this hospital's own test rows."""
    ends = ("_low", "_high")
    names = [name for name in figures if not name.endswith(ends)]
    body = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{_text(figures[name])}</td>"
        f"<td>{_interval(figures, name)}</td></tr>"
        for name in names
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>Site report, {escape(run_id)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>The model at this hospital</h1><p>Run {escape(run_id)}, model "
        f"<code>{escape(model_sha256)}</code>. Over this hospital's own test rows, which no model "
        "saw; these figures stay here. A dash: no value, or too few rows stand behind it.</p>"
        "<table><thead><tr><th>figure</th><th>value</th><th>interval</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
        "<p>For research; not a medical device.</p></body></html>\n"
    )


def _text(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.3f}"
        case _:
            return escape(str(value))


def _interval(figures: Mapping[str, object], name: str) -> str:
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    return "" if low is None or high is None else f"{_text(low)} to {_text(high)}"
