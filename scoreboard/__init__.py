"""Equal-budget comparisons: runs -> records -> tables, plots and TensorBoard.

``spec`` says what one run is, ``registry`` finds its environment and agent by name, ``evaluation``
scores a policy against the certificate, ``callback`` measures while any agent learns, ``records``
is the folder on disk, ``runner`` makes one run, ``compare`` makes many, ``report`` reads what is
finished. Nothing here knows one agent from another.
"""
