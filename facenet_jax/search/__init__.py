"""Search: a database of embeddings that a network fills from images and is asked with images.

import facenet_jax
from facenet_jax.search import Database, index_folder
database = Database.open(facenet_jax.load("runs/demo"), "runs/demo/search")
index_folder(database, "photos")
found = database.search({"visible": "car.jpg", "thermal": "car.png"}, top=10)
"""

from facenet_jax.search.database import Database, Found
from facenet_jax.search.engine import refuse_missing
from facenet_jax.search.indexing import index_folder

__all__ = ["Database", "Found", "index_folder", "refuse_missing"]
