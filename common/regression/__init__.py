"""Exact regression: the pooled fit, from sums that no hospital's rows can be read off alone.

Newton's method needs three things of the data, and all three are sums over rows: the
log-likelihood l, its gradient g and the negative Hessian H. So every hospital computes them
over its own rows at the coefficients that travel, they are added up under masks, and the
coordinator takes the step that whoever held all rows would take:

    theta' = theta + (H + ridge P)^-1 (g - ridge P theta)

After a few rounds nothing moves, and the coefficients, their standard errors (from H) and
the log-likelihood are those of the pooled analysis, to rounding.

* `sums`: l, g and H of one hospital, and the vector they travel in
* `fit`: the step, its safeguards, and when it is over
* `table`: coefficients, intervals, p-values and ratios, in the features' own units
* `distribution`: tails of the normal and of Student's t

Pure numpy in float64; neither files nor clocks. The coefficients' order is the model's:
weights as in the encoded columns, then the intercept (which Cox regression lacks).
"""
