"""The page's style sheet: two themes, one column on a phone, plain paper in print."""

LIGHT = {
    "paper": "#fbfaf7",
    "ink": "#1d1f22",
    "muted": "#5c6066",
    "grid": "#dcd9d2",
    "before": "#c9c5bc",
    "s0": "#11698a",
    "s1": "#b84e23",
    "s2": "#4a7a1d",
    "s3": "#7a4fa3",
    "s4": "#8a6500",
    "s5": "#b03a6e",
}
DARK = {
    "paper": "#15171a",
    "ink": "#e9e7e2",
    "muted": "#a3a8af",
    "grid": "#353a40",
    "before": "#4a5057",
    "s0": "#63bfdd",
    "s1": "#f0946c",
    "s2": "#9ccc65",
    "s3": "#c09be6",
    "s4": "#dcb84a",
    "s5": "#ee8ab4",
}


def _variables(theme: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())


CSS = (
    f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
    f"@media print {{ :root {{ {_variables(LIGHT | {'paper': '#ffffff'})} }} }}"
    + """
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
section { margin-top: 3.5rem; }
h1 {
  margin: .2rem 0 1rem; font-size: clamp(1.4rem, 1.1rem + 1.6vw, 2rem); line-height: 1.2; font-weight: 650;
  letter-spacing: -.01em; text-wrap: balance; overflow-wrap: anywhere;
}
h2 { margin: 0 0 .4rem; font-size: 1.2rem; font-weight: 650; line-height: 1.3; }
.eyebrow {
  margin: 0; color: var(--muted); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase;
}
.headline {
  margin: 0; padding-left: 1rem; border-left: 3px solid var(--s0); max-width: 46rem;
  font-size: clamp(1.05rem, 1rem + .5vw, 1.25rem); line-height: 1.45; text-wrap: pretty;
}
section > p { margin: 0 0 1.25rem; max-width: 46rem; color: var(--muted); text-wrap: pretty; }
header + section { margin-top: 2.25rem; }

.strip {
  display: flex; flex-wrap: wrap; gap: 1px; margin: 1.5rem 0 0; background: var(--grid);
  border: 1px solid var(--grid);
}
.strip div { flex: 1 1 8.75rem; padding: .7rem .9rem; background: var(--paper); }
.strip dd {
  margin: 0; white-space: nowrap; font-size: 1.05rem; line-height: 1.4; font-variant-numeric: tabular-nums;
}
.strip strong { font-weight: 650; }
.strip .note { white-space: normal; color: var(--muted); font-size: .85rem; }

.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem 2rem;
}
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 13.5rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption {
  margin-top: .3rem; color: var(--muted); font-size: .85rem; line-height: 1.5; overflow-wrap: anywhere;
}
.legend {
  display: inline-block; max-width: 100%; margin-right: .9rem; color: var(--muted); font-size: .85rem;
  overflow-wrap: anywhere;
}
.key { margin-right: .35rem; }
.stroke {
  display: inline-block; width: 1.2rem; margin-right: .4rem; vertical-align: .25em; border-top: 2px dashed;
}
.stroke.level { color: var(--ink); border-top: 1.5px solid; }
.stroke.guide { border-top: 2px dotted; }
.box { width: .7rem; height: .7rem; border: 0; vertical-align: 0; }
.box.before { background: var(--before); }
.box.after { background: var(--s0); }
.key-line { line-height: 1.4; }

.chart { display: block; width: 100%; max-width: 28rem; height: auto; overflow: visible; }
.chart text { fill: var(--muted); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.chart .name { fill: var(--ink); font-weight: 550; }
.chart path { fill: none; stroke: currentColor; stroke-linejoin: round; }
.chart .grid { display: inline; color: var(--grid); stroke-width: .7; }
.chart .axis { color: var(--muted); stroke-width: .8; }
.chart .level { color: var(--ink); stroke-width: 1; }
.chart .guide { color: var(--muted); stroke-width: 1.2; stroke-dasharray: 1 3; stroke-linecap: round; }
.chart .line { stroke-width: 1.8; }
.chart .dash { stroke-width: 1.4; stroke-dasharray: 4 3.5; }
.chart .mark { fill: currentColor; stroke: none; }
.chart .open { fill: var(--paper); stroke-width: 1.4; }
.chart .ring { color: var(--ink); stroke-width: 1.4; }
.chart .pale { opacity: .65; }
.chart .seed { stroke-width: 5; stroke-linecap: round; opacity: .35; }
.chart .kept { stroke-width: 3.4; stroke-linecap: round; }
.chart .gone { stroke-width: 1.7; stroke-linecap: round; opacity: .55; }
.chart .mark:hover, .chart .open:hover { stroke: var(--ink); stroke-width: 2; opacity: 1; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }

.columns {
  display: flex; align-items: flex-end; gap: min(2px, .15vw); height: 9rem; padding-top: .25rem;
  border-bottom: 1px solid var(--muted);
}
.columns i { flex: 1 1 0; min-width: 1px; max-width: 3rem; height: 100%; background:
  linear-gradient(var(--s0) 0 0) bottom / 100% var(--after) no-repeat,
  linear-gradient(var(--before) 0 0) bottom / 100% var(--whole) no-repeat; }
.ends {
  display: flex; justify-content: space-between; gap: 1rem; color: var(--muted); font-size: .75rem;
}

/* A shadow on the right while there is more to scroll to. */
.scroll {
  margin-top: 1.5rem; overflow-x: auto;
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--grid), transparent) right / .8rem 100% no-repeat scroll;
}
table {
  border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem; line-height: 1.25rem;
  font-variant-numeric: tabular-nums;
}
caption { padding-bottom: .5rem; text-align: left; color: var(--muted); font-size: .85rem; }
caption span { position: sticky; left: 0; display: inline-block; max-width: calc(100vw - 2.5rem); }
th, td {
  padding: .4375rem .7rem; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: baseline;
}
tr > :first-child { padding-left: 0; }
tr > :last-child { padding-right: 0; }
thead th { vertical-align: bottom; color: var(--muted); font-weight: 500; }
tbody th {
  position: sticky; left: 0; background: var(--paper); font-weight: 550; overflow-wrap: break-word;
  max-width: 20rem;
}
td:not(.number) { min-width: 4rem; }
.small.chart text { font-size: 12.5px; }
td:last-child:not(.number) { min-width: 13rem; color: var(--muted); }
.number { text-align: right !important; white-space: nowrap; }
thead .number { white-space: normal; }
.chosen > * { background: color-mix(in srgb, var(--s0) 12%, var(--paper)); }
.chosen th::before { content: "▸ "; color: var(--s0); }
.layers tbody { counter-reset: layer; }
.layers tbody th { counter-increment: layer; }
.layers tbody th::before { content: counter(layer) ". "; color: var(--muted); font-weight: 400; }
.bar {
  background: linear-gradient(90deg, var(--s0) var(--bar), var(--grid) 0)
    right .7rem top 1.72rem / min(4rem, 100% - 1.4rem) 3px no-repeat;
}
.layers tbody th, .glance tbody th, .networks tbody th { white-space: nowrap; }
.glance { width: auto; }
.glance tr > * { padding-right: .7rem; }
.tint { background: color-mix(in srgb, var(--s0) var(--tint), var(--paper)); }

details { margin-top: 1.5rem; }
summary { cursor: pointer; color: var(--s0); font-size: .9rem; }
details .grid { margin-top: 1rem; }
.settings {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .9rem 2rem;
  margin: 0;
}
dt { color: var(--muted); font-size: .8rem; }
dd { margin: 0; font-size: .9rem; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--s0); outline-offset: 3px; }

@media (max-width: 40rem) {
  main { padding-top: 1.75rem; }
  section { margin-top: 2.5rem; }
  th, td { padding: .375rem .55rem; }
  .layers tbody th, .glance tbody th {
    white-space: normal; overflow-wrap: anywhere; font-size: .8rem; min-width: 10.5rem; max-width: 11rem;
  }
  .strip div { padding: .6rem .65rem; }
  .strip dd { font-size: .95rem; }
  .columns { height: 7rem; }
}
@media print {
  main { padding: 0; max-width: none; }
  h2, figure, tr, .strip { break-inside: avoid; }
  h2 { break-after: avoid; }
  .scroll { overflow: visible; background: none; }
  .pair { grid-template-columns: 1fr 1fr; }
  table { font-size: .7rem; line-height: 1rem; }
  th, td { padding: .25rem .35rem; }
  td:not(.number), td:last-child:not(.number) { min-width: 0; }
  .bar { background-position-x: right .35rem; background-position-y: 1.25rem; }
  .columns i, td, .chosen > *, .strip, .box { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { content-visibility: visible; }
  summary { list-style: none; color: var(--muted); }
}
"""
)
