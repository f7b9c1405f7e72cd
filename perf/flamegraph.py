#!/usr/bin/env python3
"""`perf script -F comm,ip,sym` -> flame graph as SVG, and a list of the functions that take most (to stdout).

Usage: perf/flamegraph.py [--title TEXT] INPUT OUTPUT.svg (standard library only).
In the graph a box is a function, as wide as its share of the samples; what it calls stands on top of it. User code
is warm-coloured, the kernel's blue. Hover for the share; click to look closer, click the lowest box to go back.
"""
import argparse
import collections
import html
import re

WIDTH, ROW, SHOWN = 1200, 17, 0.3  # boxes narrower than SHOWN pixels are left out
FRAME = re.compile(r"^\s+([0-9a-f]+)\s+(.*?)(?:\+0x[0-9a-f]+)?$")
KERNEL = 0xFFFF_0000_0000_0000

SCRIPT = """
function zoom(box) {
  const x = +box.dataset.x, w = +box.dataset.w;
  for (const g of document.querySelectorAll('g.f')) {
    const at = (+g.dataset.x - x) / w * WIDTH, wide = +g.dataset.w / w * WIDTH;
    const below = +g.dataset.d < +box.dataset.d, covers = +g.dataset.x <= x + 1e-9 && +g.dataset.x + +g.dataset.w >= x + w - 1e-9;
    g.style.display = (below ? covers : at > -1e-6 && at < WIDTH - 1e-6) ? '' : 'none';
    const rect = g.querySelector('rect'), text = g.querySelector('text');
    const left = below ? 0 : at, size = below ? WIDTH : wide;
    rect.setAttribute('x', left); rect.setAttribute('width', Math.max(size - 0.5, 0));
    text.setAttribute('x', left + 3);
    text.textContent = g.dataset.n.slice(0, Math.max(0, Math.floor((size - 6) / 6.6)));
  }
}
""".replace("WIDTH", str(WIDTH))


class Node:
    """A function at one place in the call tree."""

    def __init__(self, kernel=False):
        self.count, self.kernel, self.children = 0, kernel, {}

    def child(self, name, kernel):
        return self.children.setdefault(name, Node(kernel))

    def depth(self):
        return 1 + max((child.depth() for child in self.children.values()), default=0)


def plain(symbol):
    """A Rust path without its hash."""
    symbol = re.sub(r"::h[0-9a-f]{16}$", "", symbol.strip())
    return symbol if symbol and symbol != "[unknown]" else "?"


def stacks(lines):
    """Each sample as (thread, [(function, is kernel), outermost first])."""
    thread, frames = None, []
    for line in lines:
        if not line.strip():
            if thread is not None:
                yield thread, frames[::-1]
            thread, frames = None, []
        elif thread is None:
            thread = line.strip()
        elif match := FRAME.match(line.rstrip()):
            frames.append((plain(match[2]), int(match[1], 16) >= KERNEL))
    if thread is not None:
        yield thread, frames[::-1]


def grow(lines):
    """The call tree, and for each function its samples by itself and with callees."""
    root, alone, within = Node(), collections.Counter(), collections.Counter()
    for thread, frames in stacks(lines):
        root.count += 1
        node = root.child(thread, False)
        node.count += 1
        for name, kernel in frames:
            node = node.child(name, kernel)
            node.count += 1
        if frames:
            alone[frames[-1]] += 1
            within.update(set(frames))
    return root, alone, within


def colour(name, kernel):
    shade = sum(map(ord, name)) % 50
    return f"rgb({90 + shade},{140 + shade},{205 + shade})" if kernel else f"rgb({205 + shade},{100 + 2 * shade},{60 + shade})"


def boxes(node, name, left, depth, total, height, out):
    wide = WIDTH * node.count / total
    if wide < SHOWN:
        return
    y = height - ROW * (depth + 2)
    label, text = html.escape(name, quote=True), html.escape(name[: max(0, int((wide - 6) / 6.6))])
    out.append(
        f'<g class="f" data-x="{left / WIDTH:.6f}" data-w="{wide / WIDTH:.6f}" data-d="{depth}" data-n="{label}" '
        f'onclick="zoom(this)"><title>{label}: {100 * node.count / total:.2f} % ({node.count} samples)</title>'
        f'<rect x="{left:.2f}" y="{y}" width="{max(wide - 0.5, 0.1):.2f}" height="{ROW - 1}" rx="1" '
        f'fill="{colour(name, node.kernel)}"/><text x="{left + 3:.2f}" y="{y + 12}">{text}</text></g>')
    for child_name in sorted(node.children):
        child = node.children[child_name]
        boxes(child, child_name, left, depth + 1, total, height, out)
        left += WIDTH * child.count / total


def draw(root, title):
    height = ROW * (root.depth() + 3)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
           f'font-family="monospace" font-size="11"><script><![CDATA[{SCRIPT}]]></script><rect width="100%" height="100%" '
           f'fill="#fdfdf6"/><text x="{WIDTH / 2}" y="14" text-anchor="middle" font-size="13">{html.escape(title)}, '
           f'{root.count} samples</text>']
    boxes(root, "all", 0, 0, root.count, height, out)
    return "\n".join(out) + "\n</svg>\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--title", default="flame graph")
    parser.add_argument("input")
    parser.add_argument("output")
    args = parser.parse_args()
    with open(args.input, encoding="utf-8", errors="replace") as file:
        root, alone, within = grow(file)
    if root.count == 0:
        raise SystemExit(f"{args.input} holds no samples")
    with open(args.output, "w", encoding="utf-8") as file:
        file.write(draw(root, args.title))
    print(f"{args.title}: {root.count} samples\n  alone  within")
    for (name, kernel), count in alone.most_common(20):
        share = 100 / root.count
        print(f"{count * share:6.1f} % {within[(name, kernel)] * share:6.1f} %  {'kernel' if kernel else 'user  '} {name}")


main()
