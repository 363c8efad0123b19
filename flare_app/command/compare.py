"""``fcl data compare``: sites beside each other, from the statistics that they gave."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flare_app.command.show import print_json, print_table


def add_compare(parser: ArgumentParser) -> None:
    """Options of ``fcl data compare``."""
    parser.description = "Ends with 1 when a site stands out. Statistics come from the job data_statistics."
    parser.add_argument("statistics", type=Path, help="statistics.json, or a workspace or result with one in it")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=_compare)


def _compare(arguments: Namespace) -> int:
    from fcl.data.compare import find_outliers, read_statistics

    document = read_statistics(arguments.statistics)
    outliers = find_outliers(document)
    if arguments.json:
        print_json({**document, "outliers": list(map(asdict, outliers))})
        return int(bool(outliers))
    odd = {(outlier.site, outlier.measure) for outlier in outliers}
    sites, overall = document["sites"], document["overall"]
    open_sites = [site for site in sites if "measures" in sites[site]]
    rows = [
        (name, *(str(sites[site]["totals"][name]) for site in open_sites), str(total))
        for name, total in overall["totals"].items()
    ]
    for measure, whole in overall["measures"].items():
        cells = [_cell(sites[site]["measures"].get(measure), (site, measure) in odd) for site in open_sites]
        rows.append((measure, *cells, _cell(whole, False)))
    print_table(("mean ± deviation over patients", *open_sites, "all"), rows)
    for site, reason in {**_withheld(sites), **document["left_out"]}.items():
        print(f"{site} tells nothing: {reason}")
    for number, outlier in enumerate(outliers, 1):
        print(f"{number}. {outlier.what}. Way out: {outlier.fix}.")
    stand_out = "1 thing stands out" if len(outliers) == 1 else f"{len(outliers)} things stand out"
    print(f"{len(open_sites)} sites compared: {stand_out}")
    return int(bool(outliers))


def _cell(entry: Mapping[str, Any] | None, odd: bool) -> str:
    return "-" if entry is None else f"{entry['mean']:.3g} ± {entry['stddev']:.2g}{' !' if odd else ''}"


def _withheld(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {site: entry["withheld"] for site, entry in sites.items() if "withheld" in entry}
