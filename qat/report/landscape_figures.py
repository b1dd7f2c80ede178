"""Figures of the experiments on the loss landscape: convergence, correlation, blending."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qat.report.figure import COLORS, panels
from qat.theory.experiment import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_convergence(result: Result) -> "Figure":
    """Loss and ||w|| beside the spurious minimum; the ratio of lemma 8 towards it."""
    curves = result.curves
    names = [name for name in curves if name not in ("spurious_loss", "ratio")]
    with panels(1, 3, width=3.8, height=3.1) as (figure, axes):
        loss, size, ratio = axes[0]
        for name, style in zip(names, ("-", "--", ":"), strict=True):
            loss.plot(curves[name]["loss"][:801], style, label=name)
            size.semilogy(curves[name]["size"][:801], style, label=name)
            ratio.loglog(curves["ratio"]["gap"], curves["ratio"][name], style, label=name)
        loss.axhline(curves["spurious_loss"], color="0.5", linewidth=0.8)
        note = (0.02, curves["spurious_loss"] + 0.015)
        loss.annotate("f at the spurious minimum", note, xycoords=("axes fraction", "data"))
        loss.set(xlabel="step", ylabel="f", title="start beside the spurious minimum")
        size.set(xlabel="step", ylabel="||w||", title="the same runs")
        ratio.set(
            xlabel="pi - theta (rad)",
            ylabel="||E g||² / (||df/dv||² + <E g, df/dw>)",
            title="towards the spurious minimum",
        )
        loss.legend(loc="upper left")
        ratio.legend()
        return figure


def draw_correlation(result: Result) -> "Figure":
    """Cosine of coarse gradient and gradient over the angle, one line per estimator."""
    cosines = result.curves["cosine"]
    with panels(1, 2, width=4.6, height=3.4) as (figure, axes):
        left, right = axes[0]
        for index, (name, values) in enumerate(cosines.items()):
            ax = left if _is_one_sided(name) else right
            style = ("-", "--")[index % 2]  # some curves lie on each other
            ax.plot(
                result.curves["theta"], values, style, color=COLORS[index % len(COLORS)], label=name
            )
        for ax, title in ((left, "range estimators"), (right, "cell estimators")):
            ax.set(xlabel="theta (rad)", ylim=(-0.05, 1.05), title=title)
            ax.legend(loc="lower left")
        left.set_ylabel("cosine of E g and df/dw")
        return figure


def draw_blending(result: Result) -> "Figure":
    """Loss along the steps, and the share of rising steps, for every rho."""
    with panels(1, 2, width=4.4, height=3.2) as (figure, axes):
        path, share = axes[0]
        for index, (rho, loss) in enumerate(result.curves["loss"].items()):
            style = ("-", "--")[index % 2]
            path.semilogx(
                [step + 1 for step in result.curves["steps"]], loss, style, label=f"rho = {rho}"
            )
        path.set(
            xlabel="step", ylabel="mean f / f(0)", title="300 random quadratics, binary weights"
        )
        path.legend(ncols=2)
        rises = result.curves["rises"]
        share.bar(range(len(rises)), [100 * value for value in rises.values()], color=COLORS[0])
        share.set_xticks(range(len(rises)), list(rises))
        share.set(xlabel="rho (eta = 0.1 / L)", ylabel="steps that raise f (%)")
        share.set_title("rho >= 0.1: descent is sure")
        return figure


def _is_one_sided(name: str) -> bool:
    from qat.functional.ste import ESTIMATORS

    table: Any = ESTIMATORS
    return bool(table[name.partition(" ")[0]].frame == "range")


FIGURES: dict[str, Callable[[Result], "Figure"]] = {
    "convergence": draw_convergence,
    "correlation": draw_correlation,
    "blending": draw_blending,
}
