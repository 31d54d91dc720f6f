"""What a study's owner runs: study, run and model commands, and `demo`, `sim`, `bench`.

Import rules, checked by import-linter (`make lint`): the only package that may import
both `coordinator` and `hospital_node`, because `demo`, `sim` and `bench` compose both
services; nothing imports `researcher`.
"""
