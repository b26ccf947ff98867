"""Tables, once for the terminal and once as Markdown."""


def cell(x):
    if x is None or x != x: return "-"
    if isinstance(x, str): return x
    if isinstance(x, int) or abs(x) >= 1000: return f"{x:.0f}"
    return f"{x:.3g}" if abs(x) < 10 else f"{x:.1f}"


class Report:
    """What is said goes at once to the terminal and to a Markdown file, so that a long bench that is ended early leaves what it found."""

    def __init__(self, path):
        self.path, self.markdown, self.wide = path, [], []

    def write(self, *lines):
        self.markdown += lines
        with open(self.path, "w") as f: f.write("\n".join(self.markdown) + "\n")

    def heading(self, text):
        print(f"\n{text}\n{'-' * len(text)}", flush=True)
        self.write(f"\n## {text}\n")

    def say(self, text):
        print(text, flush=True)
        self.write(text, "")

    def verbatim(self, text):
        print(text, flush=True)
        self.write("```", text.rstrip(), "```", "")

    def line(self, cells):
        print("  " + "  ".join(x.ljust(w) if left else x.rjust(w) for x, (w, left) in zip(cells, self.wide)), flush=True)
        return "| " + " | ".join(cells) + " |"

    def table(self, head, rows=(), names=12):
        """Begins a table; rows() goes on with it. Columns without a heading hold names, up to `names` letters long or as long as in `rows`."""
        known = [head] + [[cell(x) for x in row] for row in rows]
        self.wide = [(max(names if not h else 7, *(len(r[i]) for r in known)), not h) for i, h in enumerate(head)]
        self.write(self.line(head), "|" + "|".join("---" if not h else "---:" for h in head) + "|")
        self.rows(rows)

    def rows(self, rows):
        self.write(*[self.line([cell(x) for x in row]) for row in rows])

    def end(self):
        self.write("")
