#!/usr/bin/env python3
"""raw.csv of perf/matrix.sh -> summary.md and plots. Usage: perf/report.py DIRECTORY (standard library only)."""
import csv
import html
import pathlib
import statistics
import sys

# Metrics of the first table: (cells that start so, metric, unit, more is better).
MAIN = [("tcp", "mbps", "Mbit/s", True), ("udp", "received_pps", "packets/s", True),
        ("ping", "p50_us", "µs", False), ("ping", "p99_us", "µs", False)]
# Targets: (underlay, cell, metric, variant, reference, at least (True) or at most, ratio).
BOUNDS = [
    *(("A", f"tcp{n}-{cc}-{way}", "mbps", "uring1", "vxlan", True, limit)
      for cc in ("cubic", "bbr") for n, limit in ((1, .65), (4, .50)) for way in ("fwd", "rev")),
    *(("A", f"tcp{n}-cubic-{way}", "mbps", "uring1", "classic", True, 25) for n in (1, 4) for way in ("fwd", "rev")),
    *(("B", f"tcp{n}-{cc}-{way}", "mbps", "uring1", "vxlan", True, 1)
      for cc in ("cubic", "bbr") for n in (1, 4) for way in ("fwd", "rev")),
    *((u, "udp64-flat", "received_pps", "uring1", ref, True, limit)
      for u in "AB" for ref, limit in (("vxlan", 1.3), ("classic", 5))),
    *((u, cell, metric, a, b, at_least, limit)
      for u in "AB" for cell, metric, at_least in (
          *((f"tcp{n}-{cc}-{way}", "mbps", True) for cc in ("cubic", "bbr") for n in (1, 4) for way in ("fwd", "rev")),
          *((f"udp{size}-flat", "received_pps", True) for size in (64, 512, 1400)))
      for a, b, limit in (("poll1", "uring1", .75), ("uring1", "poll1", 1))),
    *((u, "ping-idle", metric, "uring1", "vxlan", False, limit)
      for u in "AB" for metric, limit in (("p50_us", 2), ("p99_us", 3))),
]
# Figures that stand by themselves: (cell, metric, variant, at most).
LIMITS = [("udp64-half", "loss_pct", "uring1", .1), ("syscalls", "syscalls_per_64k", "uring1", 1),
          ("tcp1-cubic-fwd", "rss_kib", "uring1", 48 * 1024)]
COLOURS = ["#555555", "#999999", "#c44e52", "#4c72b0", "#64b5cd", "#55a868", "#8fce9f", "#8172b2", "#ccb974", "#dd8452"]


def read(path):
    """Comment lines, and {(underlay, cell, metric): {variant: [values]}} in the file's order."""
    notes, data = [], {}
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    notes = [line[2:] for line in lines if line.startswith("# ")]
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        key = (row["underlay"], row["cell"], row["metric"])
        data.setdefault(key, {}).setdefault(row["variant"], []).append(float(row["value"]))
    return notes, data


def short(value):
    """Three digits that matter, no exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def spread(values):
    middle = short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({short(min(values))}–{short(max(values))})"


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def in_order(data, underlay, what, notes):
    """Variants in the order of the file's head, cells in that of their rows."""
    if what == "variants":
        names = [note[8:].split(":")[0] for note in notes if note.startswith("variant ")]
        there = {v for (u, _, _), got in data.items() if u == underlay for v in got}
        return [name for name in names if name in there]
    return list(dict.fromkeys(c for u, c, _ in data if u == underlay and c != "check"))


def main_table(data, underlay, variants, cells):
    """Medians with their spread."""
    rows = []
    for prefix, metric, unit, _ in MAIN:
        for cell in cells:
            got = data.get((underlay, cell, metric))
            if cell.startswith(prefix) and got:
                name = f"{cell} {metric[:3]}, {unit}" if prefix == "ping" else f"{cell}, {unit}"
                rows.append([name] + [spread(got[v]) if v in got else "–" for v in variants])
    return table(["median (min–max)"] + variants, rows)


def ratio_table(data, underlay, variants, cells, reference):
    """Ratio of medians to a reference; beside it the range over the rounds of the paired ratios."""
    rows, others = [], [v for v in variants if v != reference]
    for prefix, metric, _, _ in MAIN:
        for cell in cells:
            got = data.get((underlay, cell, metric), {})
            if not cell.startswith(prefix) or statistics.median(got.get(reference, [0])) == 0:
                continue
            row = [f"{cell} {metric[:3]}" if prefix == "ping" else cell]
            for v in others:
                if v not in got:
                    row.append("–")
                    continue
                pairs = [a / b for a, b in zip(got[v], got[reference]) if b]
                middle = statistics.median(got[v]) / statistics.median(got[reference])
                row.append(f"{middle:.2f}" + (f" ({min(pairs):.2f}–{max(pairs):.2f})" if len(pairs) > 1 else ""))
            rows.append(row)
    return table([f"× {reference}"] + others, rows)


def detail_table(data, underlay, variants, cells, wanted):
    """Rows `cell metric` for every metric that `wanted` takes."""
    rows = []
    for cell in cells:
        for (u, c, metric), got in data.items():
            if u == underlay and c == cell and wanted(metric):
                rows.append([f"{cell} {metric}"] + [spread(got[v]) if v in got else "–" for v in variants])
    return table(["median (min–max)"] + variants, rows) if rows else "none\n"


def bounds_table(data):
    """The bounds that this project sets itself, as far as these results can answer them."""
    rows = []
    for underlay, cell, metric, variant, reference, at_least, limit in BOUNDS:
        got = data.get((underlay, cell, metric), {})
        if variant in got and statistics.median(got.get(reference, [0])) > 0:
            ratio = statistics.median(got[variant]) / statistics.median(got[reference])
            met = ratio >= limit if at_least else ratio <= limit
            sign = "≥" if at_least else "≤"
            rows.append([f"{underlay} {cell} {metric}: {variant} {sign} {limit} × {reference}", f"{ratio:.2f}",
                         "yes" if met else "**no**"])
    for (underlay, cell, metric), got in data.items():
        for c, m, variant, limit in LIMITS:
            if (cell, metric) == (c, m) and variant in got:
                value = statistics.median(got[variant])
                rows.append([f"{underlay} {cell} {metric}: {variant} ≤ {limit}", short(value),
                             "yes" if value <= limit else "**no**"])
        if cell == "check" and metric == "idle_cpu_pct":
            for variant, values in got.items():
                rows.append([f"{underlay} asleep after the load: {variant} < 1 % of a core", short(max(values)),
                             "yes" if max(values) < 1 else "**no**"])
        if cell == "check" and metric.startswith("aggregation"):
            for variant, values in got.items():
                rows.append([f"{underlay} datagrams a receive ({metric[12:]}): {variant} > 4", short(values[0]),
                             "yes" if values[0] > 4 else "**no**"])
    return table(["wanted", "got", "met"], rows) if rows else "nothing here can be compared\n"


def plot(data, underlay, variants, cells, prefix, metric, unit):
    """Grouped bars with whiskers from the least to the largest value, as SVG."""
    groups = [c for c in cells if c.startswith(prefix) and (underlay, c, metric) in data]
    if not groups:
        return None
    got = {c: data[(underlay, c, metric)] for c in groups}
    top = max(max(values) for c in groups for values in got[c].values()) or 1
    bar, gap, left, high = 12, 24, 70, 240
    group = bar * len(variants) + gap
    width, height = left + group * len(groups) + 140, high + 110
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
           f'<text x="{left}" y="18" font-size="13">underlay {underlay}: {prefix}, {unit}; median, whiskers min and max</text>']
    y = lambda value: 40 + high * (1 - value / top)
    for i in range(5):
        at = top * i / 4
        out.append(f'<line x1="{left}" x2="{width - 140}" y1="{y(at):.1f}" y2="{y(at):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{y(at) + 4:.1f}" text-anchor="end">{short(at)}</text>')
    for g, cell in enumerate(groups):
        x0 = left + group * g + gap / 2
        for i, variant in enumerate(variants):
            if variant not in got[cell]:
                continue
            values, x = got[cell][variant], x0 + bar * i
            middle = statistics.median(values)
            label = html.escape(f"{variant} {cell}: {spread(values)} {unit}")
            out.append(f'<rect x="{x:.1f}" y="{y(middle):.1f}" width="{bar - 2}" height="{y(0) - y(middle):.1f}" '
                       f'fill="{COLOURS[i % len(COLOURS)]}"><title>{label}</title></rect>'
                       f'<line x1="{x + bar / 2 - 1:.1f}" x2="{x + bar / 2 - 1:.1f}" y1="{y(min(values)):.1f}" '
                       f'y2="{y(max(values)):.1f}" stroke="black"/>')
        out.append(f'<text transform="translate({x0 + 4:.1f},{high + 54}) rotate(25)">{cell}</text>')
    for i, variant in enumerate(variants):
        out.append(f'<rect x="{width - 130}" y="{44 + 16 * i}" width="10" height="10" fill="{COLOURS[i % len(COLOURS)]}"/>'
                   f'<text x="{width - 114}" y="{53 + 16 * i}">{html.escape(variant)}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    where = pathlib.Path(sys.argv[1])
    notes, data = read(where / "raw.csv")
    text = ["# Results\n", "\n".join(f"- {note}" for note in notes) + "\n", "## What is wanted\n", bounds_table(data)]
    for underlay in dict.fromkeys(key[0] for key in data):
        variants, cells = (in_order(data, underlay, what, notes) for what in ("variants", "cells"))
        kind = {"A": "plain veth", "B": "like a NIC without tunnel offload"}.get(underlay, "")
        text += [f"## Underlay {underlay}: {kind}\n", main_table(data, underlay, variants, cells)]
        for reference in ("vxlan", "native", "classic"):
            if reference in variants and len(variants) > 1:
                text.append(ratio_table(data, underlay, variants, cells, reference))
        for prefix, metric, unit, _ in MAIN:
            svg = plot(data, underlay, variants, cells, prefix, metric, unit)
            if svg:
                name = f"{underlay}-{prefix}-{metric}.svg"
                (where / name).write_text(svg, encoding="utf-8")
                text.append(f"![{prefix} {metric} on {underlay}]({name})\n")
        for title, wanted in (
            ("CPU", lambda m: m.startswith("cpu_")),
            ("Segments, turns, system calls", lambda m: m.startswith(("segments_", "turns_", "syscalls_", "calls_"))),
            ("Loss, drops, retransmits", lambda m: m.startswith(("loss_", "drop_", "kernel_", "retrans", "starved", "resent", "failed"))),
            ("Offered load, memory", lambda m: m in ("sent_pps", "offered_pps", "load_mbps", "rss_kib"))):
            text += [f"<details><summary>{title}</summary>\n", detail_table(data, underlay, variants, cells, wanted),
                     "</details>\n"]
    (where / "summary.md").write_text("\n".join(text), encoding="utf-8")
    print(where / "summary.md")


main()
