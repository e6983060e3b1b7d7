"""Which function class suits a problem, found out on its own paths: ``PDE("auto")``."""
