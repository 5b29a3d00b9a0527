"""What calibration accumulates about a layer's input: streaming, mergeable, arrays only.

Every statistic is made by `init(width, like)` and takes `update(rows)`, `merge(other)`; `result` reads it. `of_rows`
tells what it takes of a convolution: patches, or the input itself; of patches in groups, `of_groups` makes it.
Those of `PAIRED` take `update(rows, floats)`: what the layer gets in the float model too. Those of `GUIDED` take
`update(rows, weights)` where gradients of the loss tell what each row counts.
"""

from __future__ import annotations

#: Statistics by the name that algorithms ask for them.
STATISTICS = {
    "second_moment": "fewbit.statistics.second_moment:SecondMoment",
    "relative_second_moment": "fewbit.statistics.second_moment:RelativeSecondMoment",
    "guided_second_moment": "fewbit.statistics.guided_moment:GuidedSecondMoment",
    "extremes": "fewbit.statistics.extremes:Extremes",
    "histogram": "fewbit.statistics.histogram:Histogram",
    "input_drift": "fewbit.statistics.input_drift:InputDrift",
    "relative_input_drift": "fewbit.statistics.input_drift:RelativeInputDrift",
    "mean": "fewbit.statistics.mean:Mean",
    "mean_square": "fewbit.statistics.mean_square:MeanSquare",
    "moving_average": "fewbit.statistics.moving_average:MovingAverage",
    "channel_magnitude": "fewbit.statistics.channel_magnitude:ChannelMagnitude",
    "row_sample": "fewbit.statistics.row_sample:RowSample",
}
#: Statistics of the inputs behind quantized layers together with those of the float model.
PAIRED = ("input_drift", "relative_input_drift")
#: Statistics of inputs whose rows count by gradients.
GUIDED = ("guided_second_moment",)
