"""PDE (Mou 2025): the Hamilton-Jacobi-Bellman equation made linear, solved by regression."""
