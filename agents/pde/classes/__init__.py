"""Linear function classes for log f, and the convex programs that fit them."""
