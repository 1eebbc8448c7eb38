"""The command line: `qvg-engine generate` and `qvg-engine doctor`."""
