"""Error floor and rate on strongly convex problems: ``python -m experiments.convergence [--scale smoke|cpu|paper]``.

Against theta, delay, step size and spectral gap: where predicting wins, and where clipping does.
"""

from experiments.convergence.page import write_page
from experiments.convergence.study import HERE, measure
from experiments.running import arguments_of, settings_of


def main() -> None:
    arguments = arguments_of(HERE, __doc__)
    settings = settings_of(HERE, arguments.scale)
    arguments.storage.mkdir(parents=True, exist_ok=True)
    if not arguments.page:
        measure(settings, arguments.storage, arguments.output, arguments.processes)
    write_page(settings, arguments.output, arguments.scale)


if __name__ == "__main__":
    main()
