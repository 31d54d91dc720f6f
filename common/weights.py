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
        case "samples":
            return quantise.weight(rows, federation.max_weight)
        case "size_class":
            return quantise.weight(quantise.size_class(rows), federation.max_weight)
        case _:
            return public_weight(study, site)


def public_weight(study: Study, site: str) -> float:
    """Return u of `site` where it follows from the study alone: equal or public weights.

    Raises:
        ConfigError: BAD_VALUE, public weights do not name the site.
    """
    return 1.0 if study.federation.weight_rule == "equal" else _named(study, site)[0]


def public_batch(study: Study, site: str) -> float:
    """Return `m_i` of mode patient-local: what a site's summed gradient is divided by (9.6).

    Raises:
        ConfigError: BAD_VALUE, the study has no such number for the site.
    """
    terms = study.privacy.dp
    if terms.batch is not None:
        return float(terms.batch)
    return _named(study, site)[1] * (terms.sampling or 1.0)


def _named(study: Study, site: str) -> tuple[float, float]:
    """Return the weight u of a site, and the public number that it follows from."""
    weight, number = study.federation.public_weight(site), study.federation.public_number(site)
    if weight is None or number is None:
        raise ConfigError("BAD_VALUE", f"federation.weights has no entry for site {site}")
    return weight, number
