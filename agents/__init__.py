"""Learners of ours: PDE (Mou 2025) and PI-FT (Han, Razaviyayn and Xu 2025)."""

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .pde.agent import PDE
    from .pi_ft.agent import PIFT

__all__ = ["PDE", "PIFT"]
__getattr__, __dir__ = lazily(__name__, {"PDE": ".pde.agent", "PIFT": ".pi_ft.agent"})
