"""What models are worth that hospitals train together, and the commands that show it.

    python -m benchmarks.accuracy heart --data DIR     one entry: measure, keep under build/
    python -m benchmarks.accuracy page                 write docs/accuracy.md of all entries

An entry is a module with a study beside it and a function `measure`; `entries.py` lists them.
Every run goes through `researcher.sim.simulate`: nodes, keys, masks and rounds as in production.

`rounds`, `local` and `private` are commands of their own: how the terms of the shipped heart
studies were chosen, and what differential privacy costs.
"""
