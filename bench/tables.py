"""Tables, once for the terminal and once as Markdown."""


def cell(x):
    if x is None or x != x: return "-"
    if isinstance(x, str): return x
    if isinstance(x, int) or abs(x) >= 1000: return f"{x:.0f}"
    return f"{x:.3g}" if abs(x) < 10 else f"{x:.1f}"


class Report:
    """What is said goes to the terminal at once, and to a Markdown file at the end."""

    def __init__(self):
        self.markdown = []

    def heading(self, text):
        print(f"\n{text}\n{'-' * len(text)}", flush=True)
        self.markdown += [f"\n## {text}\n"]

    def say(self, text):
        print(text, flush=True)
        self.markdown += [text, ""]

    def verbatim(self, text):
        print(text, flush=True)
        self.markdown += ["```", text.rstrip(), "```", ""]

    def table(self, head, rows):
        rows = [[cell(x) for x in row] for row in rows]
        wide = [max(len(r[i]) for r in [head] + rows) for i in range(len(head))]
        for r in [head] + rows:
            print("  " + "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(r, wide))), flush=True)
        line = lambda r: "| " + " | ".join(r) + " |"
        self.markdown += [line(head), "|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|"]
        self.markdown += [line(r) for r in rows] + [""]

    def write(self, path):
        with open(path, "w") as f: f.write("\n".join(self.markdown) + "\n")
