"""PI-FT (Han, Razaviyayn and Xu 2025): policy iteration by value gradients."""
