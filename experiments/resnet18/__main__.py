"""ResNet-18 with weights that come late: ``python -m experiments.resnet18 [--scale smoke|cpu|paper]`` from the root.

torchvision's network on CIFAR-10 with its usual recipe, by PC-ASGD, D-ASGD, C-ASGD and a run without delays.
"""

from experiments.resnet18.page import write_page
from experiments.resnet18.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
