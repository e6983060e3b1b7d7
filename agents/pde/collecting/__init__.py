"""How PDE gathers paths."""
