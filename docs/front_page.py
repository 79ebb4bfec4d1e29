"""Draw the two pictures of the first page, from the tables of the result pages: python docs/front_page.py

No number stands here: each is read from a table, under which its command stands.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
TEAL, ORANGE, GREY = "#0b7285", "#e8590c", "#868e96"


def rows_of(page, name):
    """The cells of a table between "begin name" and "end name", row by row; the first is the head."""
    part = re.search(rf"\.\. begin {name}\n(.*?)\.\. end {name}\n", (RESULTS / page).read_text(encoding="utf-8"), re.S)
    lines = part[1].splitlines()
    rules = [i for i, line in enumerate(lines) if re.fullmatch(r"=+( +=+)+", line)][:3]
    starts = [found.span() for found in re.finditer("=+", lines[rules[0]])]
    ends = [start for start, _ in starts[1:]] + [None]
    body = lines[rules[0] + 1 : rules[1]] + lines[rules[1] + 1 : rules[2]]
    return [[line[start:end].strip() for (start, _), end in zip(starts, ends, strict=True)] for line in body]


def share(cell):
    return float(cell.split()[0])


def kept():
    """Accuracy kept by rank: twelve adapters in one. Points by method: [(rank, share), ...]."""
    _, *methods = rows_of("distill.rst", "distill-methods")
    by_name = {name: share(cell) for name, cell, *_ in methods}
    head, *limits = rows_of("distill.rst", "distill-limits")
    rank, plain, trained = head.index("k"), head.index("tsv, match"), head.index("trained")
    twelve = [row for row in limits if (row[head.index("adapters")], row[head.index("kind")]) == ("12", "began apart")]
    free = "multi-head, five kinds of generic texts and pseudo-texts"
    own = "multi-head, five kinds and texts of tasks, 50 a task"
    points = {
        "trained, 50 texts a task": [(16, by_name[own])],
        "trained, no task text": [(16, by_name[free]), *((int(row[rank]), share(row[trained])) for row in twelve)],
        "tsv, the default": [(16, by_name["tsv, match"]), *((int(row[rank]), share(row[plain])) for row in twelve)],
        "PEFT, its best (svd)": [(16, max(value for name, value in by_name.items() if name.startswith("PEFT")))],
    }
    return {name: sorted(values) for name, values in points.items()}


def seconds():
    """CPU seconds of one merge of eight adapters at 4096 x 4096: (combination type, PEFT, lorakit)."""
    head, *rows = rows_of("performance.rst", "peft")
    column = {name: head.index(name) for name in ("width", "adapters", "PEFT", "lorakit, CPU ms", "PEFT, CPU ms")}
    chosen = [row for row in rows if (row[column["width"]], row[column["adapters"]]) == ("4096", "8")]
    names = ("linear", "ties", "magnitude_prune_svd", "ties_svd", "svd")
    by_name = {row[column["PEFT"]]: row for row in chosen}
    return [
        (name, *(float(by_name[name][column[side]]) / 1000 for side in ("PEFT, CPU ms", "lorakit, CPU ms")))
        for name in names
    ]


def draw_kept(path):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    colours = (TEAL, TEAL, ORANGE, GREY)
    for (name, points), colour in zip(kept().items(), colours, strict=True):
        ranks, values = zip(*points, strict=True)
        alone = len(points) == 1
        ax.plot(
            ranks,
            values,
            "o-" if not alone else ("*" if colour == TEAL else "s"),
            color=colour,
            lw=2.2,
            ms=12 if alone else 7,
        )
        at = 0 if alone else -1
        offset = (12, -4) if alone else (8, -4)
        ax.annotate(
            name, (ranks[at], values[at]), xytext=offset, textcoords="offset points", color=colour, weight="bold"
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks([8, 16, 32], ["8", "16", "32"])
    ax.set_xlim(7, 78)
    ax.set_ylim(0.7, 0.95)
    ax.set_yticks([0.7, 0.75, 0.8, 0.85, 0.9, 0.95], ["70 %", "75 %", "80 %", "85 %", "90 %", "95 %"])
    ax.set_xlabel("rank of the merged adapter")
    ax.set_title("Accuracy kept, twelve adapters of rank 8 in one", loc="left", weight="bold")
    finish(fig, ax, path)


def draw_seconds(path):
    import matplotlib.pyplot as plt

    found = seconds()
    fig, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
    for row, (_, theirs, ours) in enumerate(found):
        ax.plot([ours, theirs], [row, row], color="#ced4da", lw=3, zorder=1)
        ax.scatter([ours], [row], color=TEAL, s=70, zorder=2)
        ax.scatter([theirs], [row], color=GREY, s=70, marker="s", zorder=2)
        ax.annotate(f"{theirs / ours:,.0f} times", ((theirs * ours) ** 0.5, row), xytext=(0, 6),
                    textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
    ax.set_yticks(range(len(found)), [name for name, *_ in found])
    ax.set_ylim(-0.6, len(found) - 0.2)
    ax.set_xscale("log")
    ax.set_xticks([0.001, 0.01, 0.1, 1, 10, 100], ["1 ms", "10 ms", "0.1 s", "1 s", "10 s", "100 s"])
    ax.scatter([], [], color=TEAL, s=70, label="lorakit")
    ax.scatter([], [], color=GREY, s=70, marker="s", label="PEFT")
    ax.legend(loc="lower right", frameon=False)
    ax.set_xlabel("CPU time, one module of 4096 x 4096, logarithmic")
    ax.set_title("The same merge of eight adapters of rank 16", loc="left", weight="bold")
    finish(fig, ax, path)


def finish(fig, ax, path):
    import matplotlib.pyplot as plt

    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "lorakit", "font.size": 10})
    draw_kept(HERE / "_static" / "kept.svg")
    draw_seconds(HERE / "_static" / "seconds.svg")
