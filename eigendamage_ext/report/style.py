"""The page's style sheet: two themes, one column on a phone."""

THEME = """\
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --ink: #1d1f22; --muted: #63676d; --grid: #d9d6cf; --accent: #11698a; --warm: #c2562d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e9e7e2; --muted: #9ea3aa; --grid: #3a3e44; --accent: #63bfdd; --warm: #f0946c;
  }
}"""

CSS = (
    THEME
    + """
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 60rem; margin: 0 auto; padding: 4rem 1.25rem 5rem; }
section { margin-top: 3.5rem; }
h1 {
  margin: .2rem 0 1.2rem; font-size: clamp(1.5rem, 1.1rem + 2vw, 2.1rem); line-height: 1.2; font-weight: 650;
  letter-spacing: -.01em; text-wrap: balance;
}
h2 { margin: 0 0 .4rem; font-size: 1.2rem; font-weight: 650; line-height: 1.3; }
.eyebrow {
  margin: 0; color: var(--muted); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase;
}
.headline {
  margin: 0 0 1rem; padding-left: 1rem; border-left: 3px solid var(--accent); max-width: 44rem;
  font-size: clamp(1.1rem, 1rem + .6vw, 1.3rem); line-height: 1.45; text-wrap: pretty;
}
.subtitle, section > p { margin: 0 0 1.25rem; max-width: 44rem; color: var(--muted); text-wrap: pretty; }

.pair {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem 2rem;
}
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 13rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--muted); font-size: .85rem; }
.chart { display: block; width: 100%; height: auto; }
.chart * { stroke-linejoin: round; stroke-linecap: butt; }
.chart text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.legend { margin-right: .9rem; color: var(--muted); font-size: .85rem; white-space: nowrap; }
.key {
  display: inline-block; width: 1.1rem; margin-right: .4rem; vertical-align: .25em; border-top: 3px solid;
  border-radius: 1px;
}
.key.accent { color: var(--accent); }
.key.warm { color: var(--warm); }
.key.dashed { color: var(--ink); border-top: 1.5px dashed; }
.key.dotted { color: var(--muted); border-top: 2px dotted; }

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
tbody th { position: sticky; left: 0; background: var(--paper); font-weight: 550; white-space: nowrap; }
td:not(.number) { min-width: 4rem; }
td:last-child:not(.number) { min-width: 13rem; color: var(--muted); }
.number { text-align: right !important; white-space: nowrap; }
thead .number { white-space: normal; }

details { margin-top: 1.5rem; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; }
.settings {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .9rem 2rem;
  margin: 0;
}
dt { color: var(--muted); font-size: .8rem; }
dd { margin: 0; font-size: .9rem; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; }

@media (max-width: 40rem) {
  main { padding-top: 2rem; }
  section { margin-top: 2.5rem; }
  th, td { padding: .375rem .55rem; }
}
@media print {
  main { padding: 0; }
  section { break-inside: avoid; }
}
"""
)
