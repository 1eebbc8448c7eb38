"""At equal bytes, a longer window in a compressed format against a shorter one in bf16.

`settings.py` says what, `budgets.py` which windows take as many bytes, `looks.py` what of revisited
ground a window still sees; `videos.py` measures what is missing; `summary.py` compares and
answers, `report.py` and `plots.py` show it.
"""
