"""Trained agents for others: the zoo that ships with the package, and folders on the hub."""

from . import zoo as zoo
