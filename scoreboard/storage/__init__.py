"""The folder of a comparison on disk: runs, archives, and what may be read from anybody."""
