"""``python -m ray_pcasgd`` is ``ray-pcasgd``."""

from ray_pcasgd.cli.app import main

main()
