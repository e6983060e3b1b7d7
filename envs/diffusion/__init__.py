"""Denoising chains of diffusion models: the exact ones, the shipped ones, and any pipeline of
diffusers.
"""
