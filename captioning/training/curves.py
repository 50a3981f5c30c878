"""A plot of a training run's history. Needs matplotlib (extra `train`)."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def draw_curves(history: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Loss, learning rate and validation scores over the steps, as PNG; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    steps = [record for record in history if record["kind"] == "step"]
    validations = [record for record in history if record["kind"] == "validation" and "cider_d" in record]
    ends = [one["step"] for one, other in itertools.pairwise(steps) if one["stage"] != other["stage"]]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, scores, rate = figure.subplots(1, 3)
    loss.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="tab:blue", linewidth=1)
    loss.set(title="training loss", xlabel="step", ylabel="per unit: token, image or caption")
    for name, label in (("cider_d", "CIDEr-D"), ("bleu_4", "BLEU-4")):
        scores.plot([r["step"] for r in validations], [r[name] for r in validations], marker="o", label=label)
    scores.set(title="validation", xlabel="step")
    if validations:
        # Scores rise, so this corner is free; "best" is slow with many points.
        scores.legend(loc="lower right")
    rate.plot([r["step"] for r in steps], [r["lr"] for r in steps], color="tab:green", linewidth=1)
    rate.set(title="learning rate", xlabel="step")
    for axes in (loss, scores, rate):
        axes.grid(alpha=0.3)
        for end in ends:
            axes.axvline(end, color="tab:gray", linewidth=0.8, linestyle="--")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
