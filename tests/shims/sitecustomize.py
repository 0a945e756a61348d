"""Gives every Python process that has this folder on its PYTHONPATH what `torchvision_operators` does."""

from torchvision_operators import install

install()
