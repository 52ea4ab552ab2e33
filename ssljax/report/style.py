"""The look of the page: one column on a phone, light or dark."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #faf9f6; --card: #fff; --text: #24272c; --soft: #6a6f78;
  --line: #e5e2dc; --track: #eeece7; --grey: #b3b6bc; --own: #2f62c9;
  --same: #2f9e6b; --other: #d2603a; --point: rgba(60, 70, 90, .08);
  --c0: #3b74d6; --c1: #e07b39; --c2: #2f9e6b; --c3: #c9485b; --c4: #8a63d2;
  --c5: #9a7b4f; --c6: #d66fb1; --c7: #6f7d8c; --c8: #a59a1f; --c9: #2aa3b5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1d2024; --text: #e4e3df; --soft: #989da6;
    --line: #31353b; --track: #2a2e33; --grey: #6b7079; --own: #7ea6f5;
    --same: #4fc08d; --other: #ef8660; --point: rgba(200, 210, 230, .1);
    --c0: #6f9ff0; --c1: #f09a5f; --c2: #4fc08d; --c3: #e8707f; --c4: #ab8aec;
    --c5: #bd9f72; --c6: #ea92cb; --c7: #98a5b3; --c8: #cbc04a; --c9: #52c4d4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 20px 80px; }
h1 {
  font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px;
  letter-spacing: -.015em;
}
h2 { font-size: 1.2rem; margin: 56px 0 4px; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 0 0 12px; }
.text{max-width:70ch;line-height:1.5;margin:.6em 0}
.note, small, footer { color: var(--soft); font-size: .875rem; }
.note { max-width: 68ch; margin-bottom: 16px; }
.run { margin: 20px 0 12px; }
.dot {
  display: inline-block; width: .65em; height: .65em; border-radius: 50%;
  margin-right: .5em;
}
.grid {
  display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(310px, 100%), 1fr));
}
h1 + .wide { margin-top: 20px; }
.wide {
  display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px; min-width: 0;
}
.card > h3 { display: flex; justify-content: space-between; gap: 12px; }
.card > h3 small { font-weight: 400; white-space: nowrap; }
.lead { color: var(--soft); margin: 0 0 16px; }
.lead b { color: var(--text); font-weight: 600; }
.protocols {
  display: grid; gap: 20px 40px;
  grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr));
}
.card > .note:last-child { margin: 14px 0 0; }
.card + .note { margin: 10px 0 0; }
.protocol > p { margin: 6px 0 0; font-size: .875rem; color: var(--soft); }
.up { color: var(--same); font-weight: 600; }
.down { color: var(--other); font-weight: 600; }
.bars {
  display: grid; grid-template-columns: auto 1fr auto; gap: 6px 12px;
  align-items: center; font-size: .9rem;
}
.bars b { font-weight: 500; }
.bars strong { font-weight: 600; }
.track {
  background: var(--track); border-radius: 4px; height: 14px; overflow: hidden;
}
.track i { display: block; height: 100%; background: var(--grey); }
.track .own { background: var(--own); }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 10.5px; fill: var(--soft); }
.rule { stroke: var(--line); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.band { opacity: .18; }
.strip { fill: transparent; }
.strip:hover { fill: var(--point); }
.map { flex: 1 1 440px; max-width: 820px; }
.mapped { display: flex; flex-wrap: wrap; gap: 8px 32px; align-items: center; }
.mapped .legend { flex: 1 1 130px; }
.map circle { fill-opacity: .75; }
.frame { fill: none; stroke-width: 2; }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: .875rem;
  margin: 8px 0;
}
.legend i {
  display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  margin-right: .45em;
}
.values {
  display: flex; flex-wrap: wrap; gap: 0 14px; margin: 2px 0 0;
  font-size: .82rem; color: var(--soft);
}
img {
  display: block; width: 100%; height: auto; border-radius: 4px;
  background: var(--track);
}
.px { image-rendering: pixelated; }
.row { display: grid; gap: 14px; grid-template-columns: repeat(8, 1fr); }
.card .row { gap: 10px; grid-template-columns: repeat(4, 1fr); }
.stack { display: grid; gap: 5px; align-content: start; }
.stack > img:first-child { margin-bottom: 3px; }
.pairs { display: grid; gap: 4px; grid-template-columns: 1fr 1fr; }
.cards {
  display: grid; gap: 16px 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(180px, 46%), 1fr));
}
.query {
  display: flex; gap: 10px; align-items: center; margin-bottom: 6px;
  line-height: 1.3; font-size: .9rem;
}
.query img { width: 46px; flex: none; }
.query small { display: block; }
.found { display: grid; gap: 4px; grid-template-columns: repeat(4, 1fr); }
.same { border: 2px solid var(--same); }
.other { border: 2px dashed var(--other); }
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; min-width: min(100%, 420px); font-size: .9rem;
}
th, td {
  text-align: left; font-weight: 400; vertical-align: top;
  padding: 6px 16px 6px 0; border-bottom: 1px solid var(--line);
}
tbody th { color: var(--soft); }
thead th { font-weight: 600; }
thead th, tbody th { overflow-wrap: normal; }
td { min-width: 7.5em; }
tr:last-child > * { border-bottom: 0; }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--own); font-size: .9rem; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.5; margin: 12px 0 0; }
footer {
  margin-top: 64px; border-top: 1px solid var(--line); padding-top: 16px;
}
@media (max-width: 480px) {
  main { padding: 24px 14px 56px; }
  h1 { font-size: 1.45rem; }
  h2 { margin-top: 44px; }
  .card { padding: 14px; }
  .row, .card .row { gap: 10px; grid-template-columns: repeat(4, 1fr); }
}
"""
