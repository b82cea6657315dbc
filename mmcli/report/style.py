"""The style sheet of report.html: light and dark, from the width of a phone up."""

CSS = """
:root { --text: #222; --muted: #666; --back: #fff; --card: #f6f7f9; --grid: #ddd; --link: #0645ad;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --s4: #b8860b; --s5: #56b4e9; --s6: #8b4513; --s7: #555; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --muted: #a0a0a0; --back: #16181c; --card: #202329; --grid: #3a3e46; --link: #8ab4f8;
    --s0: #5ab4ec; --s1: #ff9a4d; --s2: #3ccf9e; --s3: #e9a3cb; --s4: #e0b84c; --s5: #8fd3ff; --s6: #d29a6a;
    --s7: #bbb; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
  sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .2rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .6rem; border-bottom: 1px solid var(--grid); }
p { margin: .3rem 0; }
a { color: var(--link); }
.state { font-size: .8rem; font-weight: normal; padding: .1rem .5rem; border-radius: 1rem; background: var(--card);
  border: 1px solid var(--grid); vertical-align: middle; white-space: nowrap; }
.state.finished { border-color: var(--s2); } .state.failed { border-color: var(--s1); }
.reason, footer, .lineage span { color: var(--muted); }
.figures { display: flex; flex-wrap: wrap; gap: .5rem; margin: .8rem 0; }
.figures div { background: var(--card); border-radius: .5rem; padding: .4rem .8rem; }
.figures b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.figures span { color: var(--muted); font-size: .8rem; }
pre { background: var(--card); padding: .5rem .8rem; border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; margin: .5rem 0; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .5rem; }
figure svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--grid);
  overflow-wrap: anywhere; }
th { color: var(--muted); font-weight: normal; }
.pairs th { width: 11rem; }
.number { font-variant-numeric: tabular-nums; width: 4.5rem; }
.samples td:last-child { white-space: pre-wrap; }
q { color: var(--muted); quotes: none; }
.lineage { list-style: none; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: .5rem; }
.lineage li { position: relative; background: var(--card); border: 1px solid var(--grid); border-radius: .5rem;
  padding: .4rem .8rem; overflow-wrap: anywhere; }
.lineage li + li { margin-left: 1.4rem; }
.lineage li + li::before { content: "\\2192"; position: absolute; left: -1.4rem; }
.lineage li.here { border-color: var(--s0); }
.lineage span { display: block; font-size: .8rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--muted); }
footer { margin: 2rem 0 1rem; font-size: .8rem; }
"""
