"""A hospital's data for one study: read, checked, split; nothing of it leaves the site.

    from hospital_node.data.load import load

    data = load(study, Path("cleveland.csv"), renamed={"num": "diagnosis"})

`data.train`, `data.test` and `data.validation` are `common.features.Table`s. The package
itself imports nothing: `heart` and `synthetic` write tables where no polars is installed.
"""
