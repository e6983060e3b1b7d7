"""Pipelines of diffusers that draw what they are asked for: one problem, and a family for each kind
of pipeline.
"""
