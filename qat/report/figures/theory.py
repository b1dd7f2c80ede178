"""Theory figures, one for each experiment, by its name."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat.report.figures.style import COLORS, panels
from qat.theory.experiment import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", ":", "-.")
# what the convergence figure shows: past the collapse of the identity's ||w||
_SHOWN = 801


def draw_convergence(result: Result) -> "Figure":
    """Loss and ||w|| beside the spurious minimum; the ratio of lemma 8 towards it."""
    curves = result.curves
    with panels(1, 3, width=3.8, height=3.1) as (figure, axes):
        loss, size, ratio = axes[0]
        for name, style in zip(curves["loss"], _STYLES, strict=False):
            loss.plot(curves["loss"][name][:_SHOWN], style, label=name)
            size.semilogy(curves["norm"][name][:_SHOWN], style, label=name)
            ratio.loglog(curves["ratio"]["gap"], curves["ratio"][name], style, label=name)
        loss.axhline(curves["spurious_loss"], color="0.5", linewidth=0.8)
        note = (0.02, curves["spurious_loss"] + 0.015)
        place = ("axes fraction", "data")
        loss.annotate("f at the spurious minimum", note, xycoords=place, fontsize=7)
        loss.set(xlabel="step", ylabel="f", title="start beside the spurious minimum")
        loss.legend(loc="upper left")
        size.set(xlabel="step", ylabel="||w||", title=f"the same runs, eta = {curves['eta']:g}")
        ratio.set(
            xlabel="pi - theta (rad)",
            ylabel="||E g||² / (||df/dv||² + <E g, df/dw>)",
            title="towards the spurious minimum",
        )
        return figure


def draw_correlation(result: Result) -> "Figure":
    """Cosine and inner product of coarse gradient and gradient over the angle, per estimator."""
    theta = result.curves["theta"]
    kinds = (("cosine", "cosine of E g and df/dw"), ("inner", "<E g, df/dw>"))
    with panels(2, 2, width=4.6, height=3.1) as (figure, axes):
        for row, (kind, label) in zip(axes, kinds, strict=True):
            for ax, one_sided in zip(row, (True, False), strict=True):
                curves = {
                    name: values
                    for name, values in result.curves[kind].items()
                    if _looks_at_range(name) == one_sided
                }
                _draw_lines(ax, theta, curves)
                ax.set(ylabel=label, ylim=(-0.05, 1.05) if kind == "cosine" else None)
        for ax, title in zip(axes[0], ("range", "cell"), strict=True):
            ax.set_title(f"{title} estimators, ||w|| = 1")
            ax.legend(loc="lower left")
        for ax in axes[1]:
            ax.set_xlabel("theta (rad)")
        return figure


def draw_blending(result: Result) -> "Figure":
    """Loss along the steps for every rho, and the share of rising steps in every problem."""
    with panels(1, 2, width=4.4, height=3.2) as (figure, axes):
        path, share = axes[0]
        for index, (rho, loss) in enumerate(result.curves["loss"].items()):
            steps = range(1, len(loss) + 1)
            path.loglog(steps, loss, _STYLES[index % 2], label=f"rho = {rho}")
        path.set(
            xlabel="step + 1", ylabel="mean f(w) / f(0)", title="random quadratics, binary weights"
        )
        path.legend(ncols=2, fontsize=7)
        _draw_shares(share, result.curves["rises"])
        return figure


def _draw_lines(ax: Any, x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> None:
    for index, (name, values) in enumerate(curves.items()):
        # dashes, because some curves lie on each other
        ax.plot(x, values, _STYLES[index % 3], color=COLORS[index % len(COLORS)], label=name)


def _draw_shares(ax: Any, rises: Mapping[str, Mapping[str, float]]) -> None:
    rhos = sorted({rho for shares in rises.values() for rho in shares}, key=float)
    for (name, shares), marker in zip(rises.items(), "os^", strict=False):
        places = [rhos.index(rho) for rho in shares]
        ax.plot(places, [100 * s for s in shares.values()], marker=marker, label=name)
    ax.set_xticks(range(len(rhos)), rhos)
    ax.set(xlabel="rho", ylabel="steps that raise f (%)", title="rising steps at fixed eta")
    ax.legend()


def _looks_at_range(name: str) -> bool:
    from qat.functional.ste import ESTIMATORS

    table: dict[Any, Any] = {**ESTIMATORS}
    return bool(table[name.partition(" ")[0]].frame == "range")


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
    "convergence": draw_convergence,
    "correlation": draw_correlation,
    "blending": draw_blending,
    "recurrence": draw_recurrence,
    "finite_samples": draw_finite_samples,
    "classification": draw_classification,
}


def draw(result: Result) -> "Figure":
    """The figure that belongs to the experiment of `result`."""
    return FIGURES[result.name](result)
