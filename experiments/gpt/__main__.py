"""A GPT with weights that come late: ``python -m experiments.gpt [--scale smoke|cpu|paper]`` from the root.

PC-ASGD against D-ASGD, C-ASGD and a run without delays, by loss and perplexity on files that were not trained on.
"""

from experiments.gpt.page import write_page
from experiments.gpt.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
