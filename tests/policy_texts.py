"""The policy of the architecture page, for tests to alter one place at a time."""

from __future__ import annotations

from typing import Final

PIN: Final = "ab" * 32

POLICY: Final = f"""\
schema: fedcare.policy/v1
site: cleveland
federation:
  id: heart-network
  ca_sha256: "{PIN}"
  members: [cleveland, hungarian, switzerland, va]
coordinator: {{address: "coordinator.example.org:443", proxy: null}}
allow:
  purposes: [research]
  owners: [uni-x]
  datasets: [heart]
  model_kinds: [logistic, mlp, cox]
  strategies: [fedavg, fedprox]
  weights: [size_class, equal]
require:
  min_cohort: 3
  min_sites: 3
  colluders: 1
  allow_two_party: false
release: {{min_cell: 10, site_metrics: false}}
"""

SHORTEST_POLICY: Final = f"""\
schema: fedcare.policy/v1
site: a
federation: {{id: net, ca_sha256: "{PIN}", members: [a, b, c]}}
coordinator: {{address: "localhost:8443"}}
allow: {{purposes: [research], owners: [uni-x], datasets: [heart], model_kinds: [logistic]}}
"""
