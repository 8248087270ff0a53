"""One evaluation for training, files and tables: embeddings of two sides, a protocol, a result."""

from facenet_jax.retrieval.embeddings import Embeddings
from facenet_jax.retrieval.scoring import Result, evaluate

__all__ = ["Embeddings", "Result", "evaluate"]
