"""The mathematics of the privacy guarantee: accountant, calibration, noise, clipping."""
