"""What calibration accumulates about a layer's input: streaming, mergeable, arrays only.

Every statistic is made by `init(width, like)` and takes `update(rows)`, `merge(other)`; `result` reads it. `of_rows`
tells what it takes of a convolution: patches, or the input itself; of patches in groups, `of_groups` makes it.
"""

from __future__ import annotations

#: Statistics by the name that algorithms ask for them.
STATISTICS = {
    "second_moment": "fewbit.statistics.second_moment:SecondMoment",
    "relative_second_moment": "fewbit.statistics.second_moment:RelativeSecondMoment",
    "extremes": "fewbit.statistics.extremes:Extremes",
    "histogram": "fewbit.statistics.histogram:Histogram",
    "mean": "fewbit.statistics.mean:Mean",
    "moving_average": "fewbit.statistics.moving_average:MovingAverage",
    "channel_magnitude": "fewbit.statistics.channel_magnitude:ChannelMagnitude",
    "row_sample": "fewbit.statistics.row_sample:RowSample",
}
