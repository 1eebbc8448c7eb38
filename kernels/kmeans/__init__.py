"""K-means over the tokens of a head: where the codebooks of the KV-cache come from.

`initial_centroids` seeds by k-means++, `fit` is Lloyd's algorithm from there or from an old
codebook, `assign` finds ids for centroids that stay. Heads never mix. Knows tensors; no pages, no
codebooks.
"""

from qvg_engine.kernels.kmeans.clusters import Assignment, Clusters
from qvg_engine.kernels.kmeans.lloyd import assign, fit
from qvg_engine.kernels.kmeans.seeding import initial_centroids
from qvg_engine.kernels.kmeans.settings import MAX_CENTROIDS, KMeansSettings

__all__ = [
    "MAX_CENTROIDS",
    "Assignment",
    "Clusters",
    "KMeansSettings",
    "assign",
    "fit",
    "initial_centroids",
]
