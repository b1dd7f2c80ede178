"""Figures of the experiments on the loss landscape: convergence, correlation, blending."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qat.report.figure import COLORS, panels
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


FIGURES: dict[str, Callable[[Result], "Figure"]] = {
    "convergence": draw_convergence,
    "correlation": draw_correlation,
    "blending": draw_blending,
}
