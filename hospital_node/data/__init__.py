"""A hospital's data for one study: read, checked, split; nothing of it leaves the site.

    data = load(study, Path("cleveland.csv"), renamed={"num": "diagnosis"})

`data.train`, `data.test` and `data.validation` are `common.features.Table`s.
"""

from hospital_node.data.load import SiteData, load

__all__ = ["SiteData", "load"]
