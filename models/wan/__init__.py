"""The causal Wan family: Self-Forcing, CausVid, LongLive and every network of that block."""
