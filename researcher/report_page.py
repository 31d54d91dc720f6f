"""The frame of the demo's report: its style and its sections, to be filled by `report`.

The content security policy lets nothing run and nothing load.
"""

from __future__ import annotations

from string import Template
from typing import Final

PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>FedCare: $title</title>
<style>
:root { --ink: #1d2b36; --soft: #5b6b78; --line: #e3e8ec; --paper: #ffffff; --tint: #f5f8f9;
  --accent: #0f4c5c; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 0 24px 56px; }
header { background: var(--accent); color: #fff; padding: 40px 0 72px; }
header > div { max-width: 1160px; margin: 0 auto; padding: 0 24px; }
header p { max-width: 760px; margin: 12px 0 0; font-size: 18px; color: #dcebef; }
header b { color: #fff; }
.brand { font-size: 13px; letter-spacing: .12em; text-transform: uppercase; color: #9fc3cd; }
h1 { font-size: 32px; line-height: 1.2; margin: 8px 0 0; font-weight: 650; }
h2 { font-size: 20px; margin: 0 0 4px; font-weight: 650; }
h3 { font-size: 16px; margin: 0 0 8px; font-weight: 650; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 24px 28px; margin-top: 20px; }
section > p { color: var(--soft); margin: 0 0 16px; max-width: 800px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 16px 24px;
  margin: -44px 0 0; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; padding: 20px 28px; }
dt { font-size: 13px; color: var(--soft); }
dd { margin: 0; font-size: 17px; font-weight: 600; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14.5px; }
.scroll { overflow-x: auto; }
td, th { padding: 7px 7px; text-align: right; border-top: 1px solid var(--line);
  white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
thead th { border-top: 0; font-size: 12.5px; font-weight: 500; color: var(--soft); }
thead tr:first-child th { padding-bottom: 0; font-weight: 650; color: var(--ink);
  text-align: center; }
td small { color: var(--soft); font-size: 12px; }
td.fed { font-weight: 650; color: var(--accent); }
.first { border-left: 1px solid var(--line); }
tr.sum td { border-top: 2px solid var(--ink); }
tr.all td { font-weight: 600; }
td i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
.two section { min-width: 0; }
.two > div { min-width: 0; }
svg { display: block; width: 100%; height: auto; max-width: 100%; }
svg text { font-family: inherit !important; }
ul { margin: 0; padding-left: 20px; }
li { margin-bottom: 8px; }
.proof td, .proof th { text-align: left; white-space: normal; }
.proof th { font-weight: 500; color: var(--soft); width: 210px; white-space: nowrap; }
code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; word-break: break-all; }
footer { color: var(--soft); font-size: 13px; margin-top: 24px; }
@media (max-width: 760px) { .two { grid-template-columns: 1fr; } section { padding: 20px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
</style>
</head>
<body>
<header><div>
<div class="brand">FedCare report</div>
<h1>$title</h1>
<p>$lead</p>
</div></header>
<main>
<dl>$facts</dl>
<section>
<h2>Is it worth it?</h2>
<p>Every figure is over test patients that no model saw. <em>Federated</em>: the released model.
<em>Local only</em>: what each hospital gets from its own patients, tested at home.
<em>Centralised</em>: all patients in one place, which is what the federation avoids. In the last
row, local only is one hospital's model tried on everybody's patients, mean over the hospitals.</p>
<div class="scroll"><table>
<thead>
<tr><th></th><th></th><th colspan="3">AUROC</th><th colspan="3">accuracy</th>
<th colspan="3">Brier score (less is better)</th></tr>
<tr><th>hospital</th><th>test rows</th>
<th>federated</th><th>local only</th><th>centralised</th>
<th>federated</th><th>local only</th><th>centralised</th>
<th>federated</th><th>local only</th><th>centralised</th></tr>
</thead>
<tbody>
$table
</tbody></table></div>
</section>
<div class="two">
<section><h2>AUROC at each hospital</h2>
<p>Beside each hospital alone, and all data in one place.</p>
$bars</section>
<section><h2>ROC curves of the released model</h2><p>Per hospital, and over all test patients.</p>
$roc</section>
</div>
<div class="two">
<section><h2>Calibration</h2><p>Of the patients given a probability, how many were sick? Bars are
95&nbsp;% intervals; the dashed line would be perfect.</p>
$calibration</section>
<section><h2>One hospital's model elsewhere</h2><p>$elsewhere</p>
$alone</section>
</div>
$medical
$personal
<section>
<h2>Rounds</h2>
<p>A full dot: the hospital's masked update is in the sum. An empty one: it dropped out and the
round closed without it. <em>sums</em> finds the scaling of each measurement,
<em>test</em> the pooled figures; both are masked sums too.</p>
$timeline
</section>
<section>
<h2>What was protected, and what was not</h2>
<p></p>
<div class="two">$protection</div>
</section>
<section>
<h2>Check it yourself</h2>
<p>The model lies in <code>model/</code> beside this page. <code>fedcare model verify model --ca
federation/pki/ca.crt</code> checks its signature, every file and its chain of rounds.</p>
<table class="proof">$proof</table>
</section>
<footer><p>Data: $attribution</p>
<p>FedCare $software, $made. For demonstration and research; not a medical device.</p></footer>
</main>
</body>
</html>
""")
