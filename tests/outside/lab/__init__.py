"""The research of a stranger: it imports facenet_jax and data_tfds, and neither knows of it."""
