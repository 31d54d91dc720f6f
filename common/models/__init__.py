"""The model catalogue as data: what tensors a study's model has and how they begin.

    schema = layout(study)            # names, shapes, metric words of a training round
    model = initial(study)            # float32 [schema.parameters]

No torch and no files: the coordinator starts a model and adds to it without ever being
able to run one. A hospital's `hospital_node.models` builds the module of the same name
and tensor names.
"""

from common.models.catalogue import (
    LOSS_LIMIT,
    METRIC_WORDS,
    full_layout,
    has_bias,
    image_shape,
    initial,
    initial_own,
    is_norm,
    is_statistic,
    layer_widths,
    layout,
    metric_ranges,
    output_count,
    own_layout,
    split_own,
    with_own,
)

__all__ = [
    "LOSS_LIMIT",
    "METRIC_WORDS",
    "full_layout",
    "has_bias",
    "image_shape",
    "initial",
    "initial_own",
    "is_norm",
    "is_statistic",
    "layer_widths",
    "layout",
    "metric_ranges",
    "output_count",
    "own_layout",
    "split_own",
    "with_own",
]
