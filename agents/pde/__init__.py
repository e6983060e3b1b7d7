"""PDE (Mou 2025): the Hamilton-Jacobi-Bellman equation as a linear one, solved by regression on
paths.
"""
