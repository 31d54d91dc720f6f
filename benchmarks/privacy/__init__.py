"""Attacks as measurements: what an adversary gets out of FedCare with its protections on, and off.

    python -m benchmarks.privacy                    all of them, and the tables of README.md
    python -m benchmarks.privacy.NAME [--quick] [--json]

    sampler        is the noise the noise that the accountant charges for?
    epsilon        a lower bound on epsilon through the hospital's own code, and what a
                   mechanism with a planted defect looks like to the same audit
    inversion      patients' records from what a coordinator holds
    membership     was a patient in the training data of a released model?
    differencing   one hospital's update from two rounds of a coordinator that lies

Attacks draw from numpy's generators under fixed seeds; the mechanisms under attack draw
from `CountingEntropy`, so that every figure comes out again.
"""
