"""How much a hospital counts: u in (0, 1], section 8 of docs/protocol.md.

`size_class` (the default) rounds a hospital's rows down to a power of two first: two
rounds with different hospitals differ by the leaver's weight word, and then the class
is all that can leak. `W_max` (`federation.max_weight`) is public and fixed.
"""

from __future__ import annotations

from common import quantise
from common.errors import ConfigError, DataError
from common.study import Study


def weight(study: Study, site: str, rows: int) -> float:
    """Return u of `site` with `rows` rows (>= 1) by the study's rule.

    Raises:
        DataError: DATA_EMPTY, there are no rows.
        ConfigError: BAD_VALUE, public weights do not name the site.
    """
    if rows < 1:
        raise DataError("DATA_EMPTY", f"{site} has no row to weigh")
    federation = study.federation
    match federation.weight_rule:
        case "equal":
            return 1.0
        case "samples":
            return quantise.weight(rows, federation.max_weight)
        case "size_class":
            return quantise.weight(quantise.size_class(rows), federation.max_weight)
        case _:
            constant = federation.public_weight(site)
            if constant is None:
                raise ConfigError("BAD_VALUE", f"federation.weights has no entry for site {site}")
            return constant
