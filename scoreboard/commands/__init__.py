"""What the command line does besides running: to look things up, check them, and carry results
elsewhere.
"""
