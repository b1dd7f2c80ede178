"""Laboratory: every experiment by name."""

from importlib import import_module

from qat.theory.experiment import Result

# in the order in which a reader meets them; each is a module of this package with `run`
EXPERIMENTS = (
    "convergence",
    "correlation",
    "blending",
    "recurrence",
    "finite_samples",
    "classification",
)


def run_experiment(name: str, *, seed: int = 0) -> Result:
    """Run one of `EXPERIMENTS`.

    Args:
        name: of the experiment.
        seed: of everything it draws.

    Raises:
        KeyError: no such experiment.
    """
    if name not in EXPERIMENTS:
        raise KeyError(name)
    result: Result = import_module(f"qat.theory.{name}").run(seed=seed)
    return result
