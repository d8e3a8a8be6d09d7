"""Every method against its reference: ``python -m experiments.references [--scale smoke|cpu|paper]`` from the root.

Each method is run by the package's local engine on random graphs, delays, speeds and seeds, and once more by a slow
reference in float64 that was written from the papers' formulas; the table has the largest relative difference.
"""

from experiments.references.page import write_page
from experiments.references.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
