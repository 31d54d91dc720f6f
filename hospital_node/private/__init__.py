"""Differential privacy at the hospital: what is added up, how it is noised, what it costs."""
