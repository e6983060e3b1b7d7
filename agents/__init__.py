"""Learners of ours: PDE (Mou 2025) and PI-FT (Han, Razaviyayn and Xu 2025)."""

from .pde import PDE
from .policy_iteration import PIFT

__all__ = ["PDE", "PIFT"]
