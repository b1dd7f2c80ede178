"""Figures of the experiments on quantized weights: recurrence, finite samples, classification."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from qat.report.figure import COLORS, panels
from qat.theory.experiment import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_recurrence(result: Result) -> "Figure":
    """Time at the optimum over its bound, the error of time averages, and the counter-example."""
    curves = result.curves
    with panels(1, 3, width=3.5) as (figure, axes):
        share, error, visits = axes[0]
        share.plot(curves["bound"], curves["share"], ".", markersize=4, label="one w* each")
        share.axline((0, 0), slope=1, color="0.5", linewidth=0.8, label="the bound itself")
        share.set(xlabel="lower bound", ylabel="share of time at the optimum", ylim=(-0.02, 1.02))
        share.set_title("n = 8, 30 % perturbation, binary")
        share.legend()
        times, errors = curves["average_error"]["steps"], curves["average_error"]["error"]
        error.loglog(times, errors, "o-", markersize=3, label="largest |average - w*_j|")
        error.loglog(times, [errors[0] / time for time in times], ":", color="0.4", label="1 / T")
        error.set(xlabel="steps T", ylabel="error", title="time averages, 200 draws of w*")
        error.legend()
        counts = curves["counter_example"]
        visits.bar(list(counts), list(counts.values()), color=COLORS[:2], width=0.5)
        visits.set(ylabel="visits of the optimum, of 3000", ylim=(0, 2400))
        visits.set_title("the counter-example, n = 4")
        for index, count in enumerate(counts.values()):
            visits.text(index, count, str(count), ha="center", va="bottom")
        return figure


def draw_finite_samples(result: Result) -> "Figure":
    """Phase pictures of the success probability, and recurrence under label noise."""
    curves = result.curves
    with panels(1, 3, width=3.6) as (figure, axes):
        for ax, (name, success) in zip(axes[0], curves["success"].items(), strict=False):
            image = ax.imshow(
                success, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto"
            )
            ax.set_xticks(range(len(curves["ratios"])), curves["ratios"])
            ax.set_yticks(range(len(curves["dimensions"])), curves["dimensions"])
            ax.set(xlabel="samples per dimension, N / n", ylabel="dimension n", title=name)
            ax.grid(visible=False)
        bar = figure.colorbar(image, ax=list(axes[0, :2]), shrink=0.9)
        bar.set_label("share of runs that end at w*")
        noise, counts = axes[0, 2], list(curves["noise"])
        time, _, error = zip(*curves["noise"].values(), strict=True)
        noise.plot(counts, time, "o-", label="share of time at w*")
        noise.plot(counts, error, "s--", label="sup error of the average, 1/sqrt(n)")
        noise.set(xlabel="samples N (n = 10)", ylim=(0, None), title="label noise of deviation 0.5")
        noise.legend()
        return figure


def draw_classification(result: Result) -> "Figure":
    """Mean training error along the steps, every estimator."""
    with panels(1, 1, width=6.5, height=3.6) as (figure, axes):
        ax = axes[0, 0]
        for index, (name, error) in enumerate(result.curves["error"].items()):
            style = ("-", "--", ":")[index % 3]  # some curves lie on each other
            steps = range(1, len(error) + 1)
            ax.semilogx(steps, error, style, color=COLORS[index % len(COLORS)], label=name)
        ax.set(xlabel="step", ylabel="share of wrongly classified samples")
        ax.set_title("two classes, 12 units per class, 2 bits, mean of 20 seeds")
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


FIGURES: dict[str, Callable[[Result], "Figure"]] = {
    "recurrence": draw_recurrence,
    "finite_samples": draw_finite_samples,
    "classification": draw_classification,
}
