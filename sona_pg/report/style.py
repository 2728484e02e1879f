"""How a report looks: on a screen by day and by night, and on paper."""

LIGHT = """
--paper: #ffffff; --ink: #1c1c1c; --muted: #6b6b6b; --grid: #e7e7e7; --raised: #f7f7f5; --band-ink: #111111;
--frozen: #a3a3a3; --adapted: #0072b2; --familiar: #56b4e9; --boosted: #e69f00; --stake: #cc79a7; --fusion: #009e73;
--related: #d55e00; --control: #d4d4d4; --other: #8a7f5c;
--region-0: #0072b2; --region-1: #e69f00; --region-2: #009e73; --region-3: #cc79a7;
--region-4: #56b4e9; --region-5: #d55e00; --region-6: #b8a800; --region-7: #555555;
"""
# Okabe & Ito (2008), which the colour-blind tell apart, somewhat darker where yellow would vanish on white.

DARK = """
--paper: #16181a; --ink: #e8e6e3; --muted: #a09d98; --grid: #2c2f33; --raised: #1e2124; --band-ink: #111111;
--frozen: #858585; --adapted: #4aa8e0; --familiar: #7cc7f2; --boosted: #e9ae2b; --stake: #d890b8; --fusion: #2bb98f;
--related: #ec7c33; --control: #bdbfc2; --other: #b3a678;
--region-0: #4aa8e0; --region-1: #e9ae2b; --region-2: #2bb98f; --region-3: #d890b8;
--region-4: #9ad6f8; --region-5: #ec7c33; --region-6: #f0e442; --region-7: #c8c8c8;
"""

STYLE = f"""
:root {{ {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ {LIGHT} }} }}
* {{ box-sizing: border-box; }}
html {{ background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%; }}
body {{
  max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
}}
header {{ border-bottom: 2px solid var(--ink); padding-bottom: 1rem; }}
h1 {{ font-size: 2.25rem; line-height: 1.15; letter-spacing: -.015em; margin: .1rem 0 .4rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; line-height: 1.3; margin: 0 0 .75rem; }}
.over, .about {{ margin: 0; color: var(--muted); }}
.about {{ overflow-wrap: anywhere; }}
section {{ margin-top: 2.75rem; }}
.lead {{ font-size: 1.15rem; max-width: 46rem; margin: 0 0 1.5rem; }}
.tiles {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1px; margin: 0 0 2rem;
  background: var(--grid); border: 1px solid var(--grid);
}}
.tiles > div {{ background: var(--paper); padding: .85rem 1rem .95rem; }}
.tiles dt {{ color: var(--muted); font-size: .875rem; }}
.tiles dd {{ margin: 0; }}
.tiles b {{ display: block; font-size: 1.75rem; line-height: 1.3; font-weight: 600; }}
.tiles span {{ display: block; font-size: .8125rem; line-height: 1.4; color: var(--muted); }}
figure {{ margin: 0 0 1rem; }}
.chart {{ overflow-x: auto; }}
figure svg {{ display: block; width: 100%; height: auto; font-family: inherit; }}
figure svg * {{ stroke-linejoin: round; stroke-linecap: butt; }}
figure svg text {{ font-variant-numeric: tabular-nums; }}
figcaption, .note, footer {{ color: var(--muted); font-size: .875rem; max-width: 46rem; }}
figcaption {{ margin-top: .5rem; }}
.note {{ margin: .6rem 0 0; }}
.table {{ overflow-x: auto; }}
.beside {{ display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2rem; align-items: start; }}
@media screen and (max-width: 50rem) {{
  .beside {{ grid-template-columns: minmax(0, 1fr); }}
  section > figure svg {{ min-width: 40rem; }}
}}
.beside th, .beside td {{ padding: .22rem 1rem .22rem 0; white-space: nowrap; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem 1.5rem .4rem 0; border-bottom: 1px solid var(--grid); }}
th {{ color: var(--muted); font-weight: 500; border-bottom-color: var(--muted); white-space: nowrap; }}
td {{ overflow-wrap: anywhere; min-width: 4.5rem; }}
td:last-child, th:last-child {{ padding-right: 0; }}
.n {{ text-align: right; white-space: nowrap; min-width: 0; }}
code {{ font: .9em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
footer {{ margin-top: 3rem; border-top: 1px solid var(--grid); padding-top: .5rem; }}
.nothing p {{ max-width: 46rem; }}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 10.5pt; }}
  .tiles {{ grid-template-columns: repeat(3, 1fr); }}
  .lead, figcaption, .note, footer {{ max-width: none; }}
  figure, tr, .tiles > div {{ break-inside: avoid; }}
  h2 {{ break-after: avoid; }}
  section {{ margin-top: 1.75rem; }}
  .table {{ overflow: visible; }}
  table {{ font-size: 8.5pt; }}
  .beside th, .beside td {{ padding: .12rem .6rem .12rem 0; }}
}}
"""
