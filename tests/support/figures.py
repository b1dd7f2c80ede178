"""What figures show, and what lies outside their frames."""


def cut_axes(figure):
    """Panels of a figure that do not show all of what is drawn in them, by their titles."""
    figure.canvas.draw()
    return [
        ax.get_title() or ax.get_ylabel()
        for ax in figure.axes
        if ax.lines
        and not (_holds(ax.viewLim, ax.dataLim.min) and _holds(ax.viewLim, ax.dataLim.max))
    ]


def _holds(frame, point):
    return all(
        low <= value <= high for low, value, high in zip(frame.min, point, frame.max, strict=True)
    )
