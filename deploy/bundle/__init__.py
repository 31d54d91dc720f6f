"""Makes the wheel house and the bundle; `common.bundle` says what a bundle is.

Run from the root of the checkout by `make wheelhouse` and `make bundle`. Nothing of this
is installed.
"""
