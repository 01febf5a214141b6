"""Put what was measured into `docs/performance.md`: `python benchmarks/publish.py RESULTS.json ...`.

Replaces what stands between the page's markers by the table, and draws the curves into `docs/images/`. Of
several files the later one wins where both have the same row or curve.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import Row, markdown, row_from_json

DOCS = Path(__file__).parent.parent / "docs"
PAGE = "performance.md"
BEGIN, END = "<!-- figures: written by benchmarks/publish.py -->", "<!-- end of figures -->"


def main() -> None:
    """Write the table and the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "results", type=Path, nargs="+", help="what run.py --json has written; later ones win"
    )
    parser.add_argument(
        "--into", type=Path, default=DOCS, help="the folder with performance.md and images/"
    )
    options = parser.parse_args()
    files = [json.loads(path.read_text()) for path in options.results]
    rows = merge([[row_from_json(row) for row in data["rows"]] for data in files])
    curves = {
        (curve["name"], curve["broker"], curve["database"]): curve
        for data in files
        for curve in data["curves"]
    }
    text = figures(files[-1], rows)
    if curves and draw(list(curves.values()), options.into / "images"):
        titles = {curve["name"]: curve["title"] for curve in curves.values()}
        text += "\n\n### How cost grows\n\n"
        text += "\n\n".join(f"![{title}](images/{name}.svg)" for name, title in titles.items())
    write_between(options.into / PAGE, text)


def merge(groups: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of all files, each once, as the last file that has it tells it."""
    found: dict[tuple[str, ...], Row] = {}
    for rows in groups:
        for row in rows:
            found[row.workload, row.metric, row.broker, row.database, row.peer] = row
    return list(found.values())


def figures(data: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return what stands between the markers: where it was measured, and a table for each broker and database."""
    machine = data["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}"
    parts = [
        f"Measured {data['at'][:10]} with {data['sizes']} sizes, medians of {data['rounds']} rounds: {where}."
    ]
    grounds: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grounds[row.broker, row.database].append(row)
    for (broker, database), members in grounds.items():
        parts.append(f"### {broker} broker, {database}\n\n{markdown(members)}")
    return "\n\n".join(parts)


def write_between(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page.

    Raises:
        ValueError: It has no markers.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the markers {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def draw(curves: Sequence[Mapping[str, Any]], folder: Path) -> bool:
    """Draw a picture for each kind of curve, with a panel for each broker; return whether that was possible."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("No pictures: matplotlib is not installed (pip install -r benchmarks/requirements.txt).")
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ckworkflow"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text: a smaller file, and one can search it
    import matplotlib.pyplot as plt

    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for curve in curves:
        by_name[curve["name"]].append(curve)
    for name, members in by_name.items():
        brokers = list(dict.fromkeys(curve["broker"] for curve in members))
        labels = list(
            dict.fromkeys(key.partition(", ")[2] for curve in members for key in curve["lines"])
        )
        picture, axes = plt.subplots(
            len(labels), len(brokers), figsize=(5.6 * len(brokers), 3.6 * len(labels)),
            squeeze=False, sharex=True, sharey="row",
        )  # fmt: skip
        for label, row in zip(labels, axes, strict=True):
            for broker, axis in zip(brokers, row, strict=True):
                here = [curve for curve in members if curve["broker"] == broker]
                for text, points in lines_of(here, label).items():
                    style = "-" if text.startswith("ours") else "--"
                    axis.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=text)
                axis.set_xscale("log")
                axis.set_ylim(bottom=0)
                axis.set_title(f"{broker} broker", fontsize="medium")
                axis.set_xlabel(members[0]["across"])
                axis.set_ylabel(label if len(labels) > 1 else members[0]["title"])
                axis.grid(visible=True, alpha=0.3)
                axis.legend(fontsize="small")
        picture.tight_layout()
        path = folder / f"{name}.svg"
        picture.savefig(path, metadata={"Date": None})
        plt.close(picture)
        print(f"Drew {path}.")
    return True


def lines_of(curves: Sequence[Mapping[str, Any]], label: str) -> dict[str, Sequence[Sequence[float]]]:
    """Return the lines of one panel: ours by database; a peer, which has none, as the first curve saw it."""
    lines: dict[str, Sequence[Sequence[float]]] = {}
    for curve in curves:
        for key, points in curve["lines"].items():
            side, _, what = key.partition(", ")
            if what == label:
                lines.setdefault(f"ours, {curve['database']}" if side == "ours" else side, points)
    return lines


if __name__ == "__main__":
    main()
