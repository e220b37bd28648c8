"""The report's page: Jinja template and style sheet, as Python strings.

One page for every kind of report: a header, then sections of blocks (text, figure, pictures,
table, columns of facts, list). The first section is printed on a page of its own, as a summary.
Flower's bundle keeps no ``.j2``, so a template is a module. No script, no font, no file from
elsewhere: the Content-Security-Policy forbids them all. What is filled in is escaped by Jinja; only
the figures, built escaped, arrive as markup.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f7f9; --ink: #16202a; --soft: #55626f; --rule: #d5dce3;
  --accent: #0067a8; --warn: #fff3d6; --warn-ink: #5f4300;
  --centralized: #007a5a; --local: #c05000; --fedavg: #0067a8; --fedprox: #a3478a; --other: #6b7480;
  --shade: 0 103 168; --edge: rgb(0 0 0 / .26);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #10161c; --panel: #19212a; --ink: #e8edf2; --soft: #a3b0bd; --rule: #36424e;
    --accent: #6cbcf5; --warn: #3d3010; --warn-ink: #ffdf94;
    --centralized: #3ec79c; --local: #ff9a4d; --fedavg: #5cb3f2; --fedprox: #e59ccf;
    --other: #9aa5b1; --shade: 70 150 215; --edge: rgb(255 255 255 / .34);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
p, li, dd { max-width: 46rem; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.5rem, 1.1rem + 2vw, 2.3rem); line-height: 1.18; margin: .2rem 0 1rem;
  letter-spacing: -.015em; max-width: 52rem; text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 3.2rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
a { color: var(--accent); text-underline-offset: .15em; }
.eyebrow { color: var(--soft); font-size: .85rem; margin: 0; }
.lead { font-size: 1.2rem; line-height: 1.5; margin: 0 0 .6rem; max-width: 50rem; }
.soft, figcaption, caption, .note { color: var(--soft); font-size: .875rem; line-height: 1.5; }
.notice { background: var(--warn); color: var(--warn-ink); padding: .7rem 1rem; border-radius: 6px;
  max-width: 50rem; }
.notice p { margin: .2rem 0; }
nav { margin: 1.4rem 0 0; font-size: .9rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 0;
  padding: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
  gap: .9rem; margin: 1.5rem 0 .6rem; padding: 0; }
.tile { background: var(--panel); border-radius: 8px; padding: .9rem 1.1rem; margin: 0;
  display: flex; flex-direction: column; }
.tile dt { font-size: .875rem; color: var(--soft); }
.tile dd { margin: 0; }
.tile .big { font-size: 1.9rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
figure { margin: 1.2rem 0 1.6rem; }
figcaption { max-width: 50rem; margin-top: .5rem; }
figcaption b, caption b { color: var(--ink); font-weight: 650; }
.panels { display: grid; gap: 1.2rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.panel { min-width: 0; max-width: 26rem; }
.panel h4, .panel-title { font-size: .95rem; font-weight: 650; margin: 0 0 .3rem;
  overflow-wrap: anywhere; }
.panel-title span { color: var(--soft); font-weight: 400; font-size: .85rem; }
svg.figure { display: block; width: 100%; height: auto; font-family: inherit;
  font-variant-numeric: tabular-nums; overflow: visible; }
svg.figure * { stroke-linejoin: round; stroke-linecap: butt; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0;
  margin: 0 0 .9rem; font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .45rem; }
.scroll { overflow-x: auto; margin: 1rem 0 1.4rem; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2.4rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.4rem 100% no-repeat local,
  linear-gradient(to right, var(--edge), transparent) left / .9rem 100% no-repeat scroll,
  linear-gradient(to left, var(--edge), transparent) right / .9rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }
table { border-collapse: collapse; font-size: .9rem; min-width: min(100%, 36rem);
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
caption span { display: block; position: sticky; left: 0; max-width: min(50rem, 100vw - 2rem); }
tbody th[scope="row"] { white-space: nowrap; }
.matrix tbody th[scope="row"] { white-space: normal; }
th, td { padding: .42rem .8rem .42rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th { font-weight: 500; }
thead th { color: var(--soft); font-size: .82rem; vertical-align: bottom;
  border-bottom: 1.5px solid var(--soft); }
td.n, th.n { text-align: right; }
td.n, th.site { white-space: nowrap; }
td small { color: var(--soft); font-size: .8em; display: block; }
tbody.group + tbody.group > tr:first-child > * { border-top: 1.5px solid var(--soft); }
th.site { font-weight: 650; }
.key { display: inline-block; width: .65em; height: .65em; border-radius: 2px;
  margin-right: .45em; }
.matrix td { text-align: center; padding: .55rem .9rem; border: 2px solid var(--paper);
  min-width: 5.6rem; background: rgb(var(--shade) / calc(var(--v) * .62));
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.matrix td.own { outline: 2px solid var(--ink); outline-offset: -3px; }
.matrix thead th { text-align: center; }
.matrix thead th:first-child { text-align: left; }
.matrix td small { color: inherit; opacity: .85; }
.scans img { display: block; width: 100%; height: auto; border-radius: 4px; background: #000; }
.grids .panels { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.grids .panel { max-width: none; }
.grids img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.brief .panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.brief .panel { max-width: none; }
.brief img { display: block; max-width: 100%; max-height: 26rem; width: auto; height: auto;
  border-radius: 4px; }
.first h2 { border: 0; margin-top: .4rem; }
.first dl.facts { font-size: 1rem; }
.first dl.facts dt { color: var(--ink); font-weight: 650; }
dl.facts { display: grid; grid-template-columns: fit-content(45%) 1fr;
  gap: .25rem 1.4rem; font-size: .9rem; margin: .6rem 0 1rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; gap: 0 3rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em; }
footer { margin-top: 3rem; padding-bottom: 2.5rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 30rem) {
  main, header, footer { padding-left: 1rem; padding-right: 1rem; }
  header { padding-top: 1.4rem; }
  .lead { font-size: 1.08rem; }
  .tile { padding: .7rem .9rem; }
  dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: .5rem; }
  .matrix td { min-width: 4.4rem; padding: .5rem; }
  .wide::before { content: "Scroll sideways: " attr(data-columns) " columns \\2192";
    display: block; position: sticky; left: 0; color: var(--accent); font-size: .8rem; }
}
@media print {
  :root {
    color-scheme: light;
    --paper: #ffffff; --panel: #f3f5f7; --ink: #000000; --soft: #45505a; --rule: #c9d0d6;
    --accent: #00558a; --warn: #fff3d6; --warn-ink: #4a3500; --shade: 0 103 168;
    --centralized: #007a5a; --local: #c05000; --fedavg: #0067a8; --fedprox: #a3478a;
    --other: #6b7480;
  }
  @page { size: A4; margin: 16mm 15mm; }
  body { font-size: 10pt; }
  main, header, footer { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { margin-top: 1.6rem; break-after: avoid; }
  figure, tbody.group, caption, .tile, .panel, .keep { break-inside: avoid; }
  figure.long { break-inside: auto; }
  figcaption { break-before: avoid; }
  .scroll:has(tbody:only-of-type) { break-inside: avoid; }
  caption, thead { break-after: avoid; }
  .panels { grid-template-columns: repeat(2, 1fr); gap: .8rem 1.6rem; }
  .scans .panels { grid-template-columns: repeat(3, 1fr); gap: .8rem 1rem; }
  .grids .panels { grid-template-columns: repeat(2, 1fr); }
  .tiles { grid-template-columns: repeat(3, 1fr); }
  .first { break-after: page; }
  .brief img { max-height: 90mm; }
  .scroll { overflow: visible; background: none; }
  caption span { position: static; }
  table { font-size: 8.5pt; }
  th, td { padding-right: .4rem; }
  .key, .tile, .notice { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

PAGE = """\
{%- macro legend() -%}
<ul class="legend">{% for one in series %}<li>{{ one.key }}{{ one.name }}</li>{% endfor %}</ul>
{%- endmacro -%}
{%- macro panels(figure) -%}
<div class="panels">
{% for panel in figure.panels %}<div class="panel">
<p class="panel-title">{{ panel.site }}{% if panel.note %} <span>{{ panel.note }}</span>{% endif %}\
</p>
{{ panel.svg }}
</div>
{% endfor %}</div>
{%- endmacro -%}
{%- macro pictures(figure) -%}
<div class="panels">
{% for one in figure.pictures %}<div class="panel">
<p class="panel-title">{{ one.name }}{% if one.note %} <span>{{ one.note }}</span>{% endif %}</p>
<img src="{{ one.uri }}" width="{{ one.width }}" height="{{ one.height }}" alt="{{ one.alt }}">
</div>
{% endfor %}</div>
{%- endmacro -%}
{%- macro caption(figure) -%}
<figcaption><b>{{ figure.title }}.</b> {{ figure.caption }}</figcaption>
{%- endmacro -%}
{%- macro overview() -%}
{% if tiles %}<dl class="tiles">
{% for tile in tiles %}<div class="tile"><dt>{{ tile.name }}</dt>\
<dd class="big">{{ tile.value }}</dd>\
<dd class="soft">{{ tile.note }}</dd></div>
{% endfor %}</dl>
{% endif %}<nav aria-label="Contents"><ul>
{% for one in sections[1:] %}<li><a href="#{{ one.id }}">{{ one.name }}</a></li>
{% endfor %}</ul></nav>
{%- endmacro -%}
{%- macro facts(pairs) -%}
<dl class="facts">
{% for name, value in pairs %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}</dl>
{%- endmacro -%}
{%- macro table(t) -%}
<div class="scroll{% if t.heads|length > 4 %} wide{% endif %}" \
data-columns="{{ t.heads|length }}" tabindex="0" role="region" aria-label="{{ t.title }}">
<table{% if t.kind %} class="{{ t.kind }}"{% endif %}>
<caption><span><b>{{ t.title }}.</b> {{ t.caption }}</span></caption>
<thead><tr>{% for head in t.heads %}<th scope="col"{% if head.n %} class="n"{% endif %}>\
{{ head.text }}</th>{% endfor %}</tr></thead>
{% for group in t.groups %}<tbody class="group">
{% for row in group %}<tr>{% for cell in row -%}
{% if cell.scope %}<th scope="{{ cell.scope }}"\
{% if cell.span %} rowspan="{{ cell.span }}"{% endif %}\
{% if cell.kind %} class="{{ cell.kind }}"{% endif %}>\
{% if cell.colour %}<span class="key" style="background: {{ cell.colour }}"></span>{% endif %}\
{{ cell.text }}</th>
{%- else %}<td class="{{ cell.kind }}"{% if cell.shade is not none %} style="--v: {{ cell.shade }}"\
{% endif %}>{{ cell.text }}{% if cell.small %}<small>{{ cell.small }}</small>{% endif %}</td>
{%- endif %}{% endfor %}</tr>
{% endfor %}</tbody>
{% endfor %}</table>
</div>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<p class="eyebrow">{{ eyebrow }}</p>
<h1>{{ title }}</h1>
{% for sentence in headline %}<p class="lead">{{ sentence }}</p>
{% endfor %}
{%- if notices %}<div class="notice" role="note">{% for line in notices %}<p>{{ line }}</p>\
{% endfor %}</div>
{% endif %}</header>
<main>
{% for section in sections %}<section{% if loop.first %} class="first"{% endif %} \
aria-labelledby="{{ section.id }}">\
<h2 id="{{ section.id }}">{{ section.heading }}</h2>
{% for kind, value in section.blocks %}
{%- if kind == "text" %}<p>{{ value }}</p>
{% elif kind == "figure" %}<figure\
{% if value.panels|sum(attribute="svg.height") > 2100 %} class="long"{% endif %}>
{{ legend() if value.legend }}
{{ panels(value) }}
{{ caption(value) }}
</figure>
{% elif kind == "pictures" %}<figure class="{{ value.kind }}">
{{ pictures(value) }}
{{ caption(value) }}
</figure>
{% elif kind == "table" %}{{ table(value) }}
{% elif kind == "columns" %}<div class="columns">
{% for heading, pairs in value %}<div>{% if heading %}<h3>{{ heading }}</h3>{% endif %}\
{{ facts(pairs) }}</div>
{% endfor %}</div>
{% elif kind == "list" %}<ul>
{% for line in value %}<li>{{ line }}</li>
{% endfor %}</ul>
{% endif %}
{%- endfor %}{% if loop.first %}{{ overview() }}{% endif %}</section>
{% endfor -%}
</main>
<footer><p>{{ footer }}</p></footer>
</body>
</html>
"""
