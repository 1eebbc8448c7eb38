"""What page formats cost in quality: captures of K and V, errors, PSNR, memory, and reports.

`capture.py` and `recorder.py` are of use by themselves: they keep a model's queries, keys and
values as it generates. `bench.py` puts the rest together for `qvg-engine bench`.
"""
