"""Control-affine robots by their equations, and any MuJoCo model."""
