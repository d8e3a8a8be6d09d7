"""``python -m ray_pcasgd`` is ``ray-pcasgd``."""

from ray_pcasgd.cli import main

main()
