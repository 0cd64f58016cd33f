"""Draw benchmarks/growth.json: docs/growth-NAME.svg for each measure, one small plot a figure.

pip install matplotlib && python -m benchmarks.plots
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.growth import RESULTS

matplotlib.use("svg")
from matplotlib import pyplot

DOCS = Path(__file__).parent.parent / "docs"


def draw(name: str, series: dict[str, Any]) -> Path:
    points = series["points"]
    figures = [key for key in points[0] if key not in ("x", "errors")]
    canvas, axes = pyplot.subplots(1, len(figures), figsize=(4 * len(figures), 3), squeeze=False, layout="constrained")
    for place, figure in zip(axes[0], figures, strict=True):
        whole = [(one["x"], one[figure]) for one in points if one.get(figure) is not None]
        place.plot([x for x, _ in whole], [y for _, y in whole], marker="o", color="#1f5f8b")
        place.set_xscale("log")
        if name == "payload":
            place.set_yscale("log")
        else:
            place.set_ylim(bottom=0)
        place.set_xlabel(series["x"])
        place.set_title(figure, fontsize=10)
        place.grid(alpha=0.3)
    canvas.suptitle(series["title"], fontsize=11)
    path = DOCS / f"growth-{name}.svg"
    canvas.savefig(path, metadata={"Date": None})
    pyplot.close(canvas)
    return path


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same picture from the same numbers
    for name, series in json.loads(RESULTS.read_text()).items():
        print(draw(name, series))
