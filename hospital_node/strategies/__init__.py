"""What a strategy does at a hospital: pure functions, one module beside each paper's equation.

    done = local_round(study, data, Received(weights, controls, limits), kept, site=)
    done.delta     leaves the hospital, masked
    done.own       stays (`hospital_node.personal_state`), if the round counts

What the server does with the sum is in `coordinator.strategies`.
"""

from hospital_node.strategies.local import LocalRound, Received, local_round
from hospital_node.strategies.personal import ditto_refine, fine_tune

__all__ = ["LocalRound", "Received", "ditto_refine", "fine_tune", "local_round"]
