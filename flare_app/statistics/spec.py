"""A bundle's ``data_statistics`` behind FLARE's interface for statistics."""

from __future__ import annotations

from typing import Any

from nvflare.app_common.abstract.statistics_spec import Bin, DataType, Feature, Histogram, HistogramType, Statistics
from nvflare.app_common.app_constant import StatisticsConstants as StC

from fcl.federation import DataStatistics

DATA_SET = "patients"


class BundleStatistics(Statistics):
    """One data set of a site's patients; features are the measures.

    A patient without a value counts as a failure, as FLARE's cleansers mean it: limits are on those with one.

    Args:
        source: what the bundle declares.
    """

    def __init__(self, source: DataStatistics) -> None:
        super().__init__()
        self._source = source

    def features(self) -> dict[str, list[Feature]]:
        return {DATA_SET: [Feature(name, DataType.FLOAT) for name in self._source.measures()]}

    def count(self, dataset_name: str, feature_name: str) -> int:
        return self._source.count(feature_name)

    def failure_count(self, dataset_name: str, feature_name: str) -> int:
        return self._source.missing(feature_name)

    def mean(self, dataset_name: str, feature_name: str) -> float:
        return self._source.mean(feature_name)

    def stddev(self, dataset_name: str, feature_name: str) -> float:
        return self._source.stddev(feature_name)

    def min_value(self, dataset_name: str, feature_name: str) -> float:
        return self._source.extremes(feature_name)[0]

    def max_value(self, dataset_name: str, feature_name: str) -> float:
        return self._source.extremes(feature_name)[1]

    def histogram(
        self, dataset_name: str, feature_name: str, num_of_bins: int, global_min_value: float, global_max_value: float
    ) -> Histogram:
        """Over the range that the bundle declares, whatever is asked for."""
        declared = self._source.measures()[feature_name]
        if declared is None:
            raise ValueError(f"{feature_name} has no declared range, so no histogram")
        counts, (low, high) = self._source.histogram(feature_name), declared
        width = (high - low) / len(counts)
        bins = [Bin(low + place * width, low + (place + 1) * width, n) for place, n in enumerate(counts)]
        return Histogram(HistogramType.STANDARD, bins)


def gathered(source: DataStatistics) -> dict[str, Any]:
    """All that a site would tell without a policy, in the form that :mod:`flare_app.egress.statistics` lets out.

    A measure with a declared range has a histogram, one without has its least and largest value.
    """
    spec = BundleStatistics(source)
    tables: dict[str, dict[str, Any]] = {
        name: {}
        for name in (
            StC.STATS_COUNT,
            StC.STATS_FAILURE_COUNT,
            StC.STATS_MEAN,
            StC.STATS_STDDEV,
            StC.STATS_MIN,
            StC.STATS_MAX,
            StC.STATS_HISTOGRAM,
        )
    }
    for name, declared in source.measures().items():
        tables[StC.STATS_COUNT][name] = spec.count(DATA_SET, name)
        tables[StC.STATS_FAILURE_COUNT][name] = spec.failure_count(DATA_SET, name)
        if spec.count(DATA_SET, name) == spec.failure_count(DATA_SET, name):
            continue
        tables[StC.STATS_MEAN][name] = spec.mean(DATA_SET, name)
        tables[StC.STATS_STDDEV][name] = spec.stddev(DATA_SET, name)
        if declared is None:
            tables[StC.STATS_MIN][name] = spec.min_value(DATA_SET, name)
            tables[StC.STATS_MAX][name] = spec.max_value(DATA_SET, name)
        else:
            bins = spec.histogram(DATA_SET, name, 0, *declared).bins
            counts = [int(entry.sample_count) for entry in bins]
            low, high = float(bins[0].low_value), float(bins[-1].high_value)
            tables[StC.STATS_HISTOGRAM][name] = {"low": low, "high": high, "counts": counts, "withheld": 0}
    return {"enough": True, "totals": source.totals(), "statistics": tables}
