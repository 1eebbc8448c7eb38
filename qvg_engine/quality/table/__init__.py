"""The table of all contenders: what is measured, kept part by part, and put together.

`settings.py` says what; `run.py` measures what is missing; `summary.py` makes a `QualityTable` of
the parts that are there, `sheets.py` and `plots.py` show it.
"""
