"""The look of the report: one stylesheet, light and dark, for screens of any width and for paper."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --page: #f5f7fa; --ink: #1a2233; --muted: #5d6b82; --grid: #d9dfe8; --panel: #f0f3f8;
  --accent: #1f6fb2; --good: #00805e; --bad: #c24f00;
  --shadow: 0 1px 2px rgb(16 24 42 / 6%), 0 4px 16px rgb(16 24 42 / 5%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171d29; --page: #0f141d; --ink: #e7ecf4; --muted: #9aa8bf; --grid: #2d3748; --panel: #212a39;
    --accent: #6db3ea; --good: #43c59e; --bad: #f2955a; --shadow: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
.sheet { max-width: 1180px; margin: 0 auto; padding: 40px 28px 64px; }
header h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .35rem;
  overflow-wrap: anywhere; }
header p { margin: 0; color: var(--muted); max-width: 96ch; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 14px 24px; margin: 26px 0 0;
  padding: 18px 0; border-block: 1px solid var(--grid); }
.facts div { min-width: 0; }
.facts dt, .card dt { font-size: .78rem; color: var(--muted); }
.facts dd { margin: 0; font-size: .8rem; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: 190px minmax(0, 1fr); gap: 36px; margin-top: 30px; }
nav { position: sticky; top: 24px; align-self: start; font-size: .9rem; }
nav ol { list-style: none; margin: 0; padding: 0; border-left: 2px solid var(--grid); }
nav a { display: block; padding: 5px 0 5px 14px; color: var(--muted); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
section { background: var(--paper); border-radius: 14px; box-shadow: var(--shadow); padding: 26px 30px 30px;
  margin-bottom: 24px; scroll-margin-top: 20px; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 0 0 .3rem; }
section > p { margin: 0 0 1rem; color: var(--muted); max-width: 72ch; }
.headline { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 18px; margin: 10px 0 4px; }
.headline strong { font-size: clamp(2.6rem, 8vw, 4rem); line-height: 1; letter-spacing: -.04em; }
.headline span { color: var(--muted); }
.track { position: relative; height: 10px; border-radius: 5px; background: var(--panel); margin: 16px 0 5px; }
.track i { position: absolute; inset-block: 0; border-radius: 5px; background: var(--accent); opacity: .35; }
.track b { position: absolute; inset-block: -4px; width: 4px; margin-left: -2px; border-radius: 2px;
  background: var(--accent); }
.ends { display: flex; justify-content: space-between; font-size: .78rem; color: var(--muted); margin-bottom: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(176px, 1fr)); gap: 12px; margin: 16px 0 6px; }
.card { background: var(--panel); border-radius: 10px; padding: 12px 14px; min-width: 0; }
.card dd { margin: 0; font-size: 1.35rem; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
.card small { display: block; color: var(--muted); font-size: .78rem; font-weight: 400; letter-spacing: 0; }
.verdict { border-left: 4px solid var(--muted); background: var(--panel); border-radius: 0 10px 10px 0;
  padding: 12px 16px; margin: 14px 0; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.figures { display: flex; flex-wrap: wrap; gap: 22px 30px; align-items: flex-start; }
figure { margin: 14px 0 0; flex: 0 1 auto; max-width: 100%; overflow-x: auto; }
figure svg { display: block; min-width: 440px; max-width: 100%; height: auto; }
figure svg text { font-family: inherit; }
.scroll { overflow-x: auto; margin-top: 16px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { font-weight: 600; color: var(--muted); font-size: .8rem; text-align: left; white-space: nowrap; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--grid); vertical-align: middle; }
td { overflow-wrap: break-word; min-width: 4.5em; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; }
.bar { display: inline-block; width: 84px; height: 8px; border-radius: 4px; margin-right: 10px; overflow: hidden;
  background: var(--panel); vertical-align: 1px; }
.share { display: inline-block; min-width: 4.1em; }
.bar i { display: block; height: 100%; background: var(--accent); }
.tiles { display: grid; gap: 18px 16px; margin-top: 16px;
  grid-template-columns: repeat(var(--columns, auto-fill), minmax(var(--least, 112px), 1fr)); }
.tile { margin: 0; font-size: .82rem; line-height: 1.35; min-width: 0; }
.tile img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 8px;
  background: var(--panel); margin-bottom: 6px; }
.tile img.small { image-rendering: pixelated; }
.tile b, .tile span { display: block; overflow-wrap: anywhere; }
.tile b.bad { color: var(--bad); } .tile b.good { color: var(--good); }
.tile span { color: var(--muted); }
.tile .id { font-size: .72rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
caption { text-align: left; font-weight: 650; padding-bottom: 6px; }
footer { color: var(--muted); font-size: .82rem; margin-top: 8px; }
@media (max-width: 860px) {
  .sheet { padding: 24px 14px 40px; }
  .columns { display: block; }
  nav { display: none; }
  section { padding: 20px 16px 22px; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; --page: #fff; --ink: #000; --muted: #444; --grid: #ccc; --panel: #f2f2f2;
    --accent: #1f6fb2; --good: #00694d; --bad: #a34200; --shadow: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 11pt; }
  .sheet { max-width: none; padding: 0; }
  .columns { display: block; }
  figure svg { min-width: 0; }
  nav { display: none; }
  section { padding: 0 0 14pt; border-radius: 0; }
  h2 { break-after: avoid; }
  figure, .tile, tr, .cards, .verdict { break-inside: avoid; }
}
""".strip()
