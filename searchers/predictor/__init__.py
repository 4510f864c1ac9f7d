"""Predictor-guided search: a surrogate fitted to the scores so far proposes what to score next.

`search` proposes, `encoding` turns architectures into vectors, `gaussian_process` and `ensemble` predict. It imports
numpy, scipy, the searchers' ground modules and `supernet.space`.
"""

from searchers.predictor.search import PredictorSearch

__all__ = ["PredictorSearch"]
