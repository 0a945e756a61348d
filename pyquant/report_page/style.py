"""The style sheet of a report page."""

STYLE = """
:root { --ink: #24303a; --soft: #5b6772; --line: #d9dee3; --card: #ffffff; --back: #f4f6f8;
        --blue: #0072b2; --pale: #cfe3f1; --orange: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 56px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 10px; }
h3 { font-size: 1rem; margin: 22px 0 6px; }
p { margin: 0 0 10px; max-width: 75ch; }
.soft { color: var(--soft); }
.lead { font-size: 1.05rem; margin-bottom: 22px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px; margin: 0 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 0 0 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile h2 { font-size: .85rem; font-weight: 600; color: var(--soft); margin: 0; }
.tile .value { font-size: 1.45rem; font-weight: 650; line-height: 1.25; }
.tile .value small { font-size: 1rem; font-weight: 500; }
.tile p { overflow-wrap: anywhere; margin: 2px 0 0; font-size: .88rem; color: var(--soft); }
.size { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; align-items: center; font-size: .9rem; }
.size .track { height: 16px; }
.size .track div { height: 100%; min-width: 2px; border-radius: 3px; background: var(--blue); }
.size .track.before div { background: #b4bcc4; }
.scroll { overflow-x: auto; }
.scroll img { display: block; width: 100%; height: auto; }
.scroll:focus-visible { outline: 2px solid var(--blue); }
table + p, .scroll + p { margin: 10px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--soft); white-space: nowrap; }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 9em; }
table.wide { min-width: 760px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { min-width: 92px; white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar span { display: block; height: 5px; margin-top: 3px; border-radius: 2px; background: var(--blue); }
.dense { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(9em, max-content) 1fr; gap: 4px 20px; margin: 0; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 1.2em; font-size: .92rem; }
li { overflow-wrap: anywhere; }
details > summary { cursor: pointer; font-weight: 600; font-size: 1.1rem; overflow-wrap: anywhere; }
details[open] > summary { margin-bottom: 14px; }
@media (max-width: 560px) {
  main { padding: 18px 12px 40px; }
  .card { padding: 14px; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
@media print { body { background: none; } .card, .tile { break-inside: avoid; } .scroll { overflow: visible; } }
"""
