"""What sites tell of their data before a run, as aggregates: FLARE's statistics, in tasks that every filter can read.

The interface for a site's numbers (``Statistics``) and the cleansers of what leaves are FLARE's own. Its
``StatisticsExecutor`` and ``StatisticsController`` are not used: they pack the numbers as bytes, so that the egress
policy could neither check nor record what leaves; one site's error or refusal ends the job for all; and they ask a
site again with ranges of the server's choice, which narrowed step by step would tell single values.
"""
