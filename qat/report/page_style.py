"""The look of the page, in light and dark, from a phone's width up."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #565c64; --ground: #ffffff;
  --panel: #f5f6f8; --line: #d9dce1; --link: #0b5a94; --warn: #fdf1e3; --warnline: #c05a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --soft: #a8adb6; --ground: #15171a;
  --panel: #1e2125; --line: #3a3f46; --link: #7cc0f5; --warn: #33251a; --warnline: #e8914a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; padding-top: .7rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 .8rem; max-width: 75ch; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; margin: .6rem 0 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.1rem; }
nav a { display: inline-block; padding: .2rem 0; }
ul.plain { margin: .4rem 0 1rem; padding-left: 1.2rem; max-width: 75ch; }
ul.plain li { margin: .2rem 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .9rem; }
.warning { background: var(--warn); border-left: 4px solid var(--warnline);
  padding: .5rem .8rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; border: 1px solid var(--line);
  border-radius: 6px; max-width: 100%; width: fit-content; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--soft); font-size: .9rem; margin: 1rem 0 .3rem; }
th, td { padding: .38rem .7rem; text-align: left; vertical-align: top; }
thead th { background: var(--panel); border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 8.5rem; max-width: min(22rem, 44vw);
  overflow-wrap: anywhere; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--ground); z-index: 1; }
thead th:first-child { background: var(--panel); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.numbers td { text-align: right; white-space: nowrap; }
.numbers thead th:not(:first-child) { text-align: right; }
td { overflow-wrap: break-word; }
.gallery { display: grid; gap: 1rem; align-items: start; margin: .6rem 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: .86rem; color: var(--soft); margin-top: .5rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
details { border: 1px solid var(--line); border-radius: 6px; padding: 0 .8rem; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem 0; font-weight: 600; overflow-wrap: anywhere; }
@media print { details { break-inside: avoid; } .scroll { overflow: visible; } }
""".strip()
