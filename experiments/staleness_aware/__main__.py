"""Staleness-aware asynchronous SGD: ``python -m experiments.staleness_aware [--scale smoke|cpu|paper]``.

Accuracy against the number of workers and n of n-softsync, with and without the staleness-aware step size.
"""

from experiments.running import arguments_of, settings_of
from experiments.staleness_aware.page import write_page
from experiments.staleness_aware.study import HERE, measure


def main() -> None:
    arguments = arguments_of(HERE, __doc__)
    settings = settings_of(HERE, arguments.scale)
    if not arguments.page:
        measure(settings, arguments.storage, arguments.output, arguments.processes)
    write_page(settings, arguments.output, arguments.scale)


if __name__ == "__main__":
    main()
