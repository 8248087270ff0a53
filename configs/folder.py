"""Your own images, without code: DIR/{train,query,gallery}/<identity>/{vis,ni,th}/<name>.

facenet train --config configs/folder.py --workdir runs/mine --config.data.root=DIR
    --config.model.pretrained=FILE    # or none: from random weights, which needs many images

`facenet doctor --dataset folder/camera --root DIR` says what is wrong with the images before.
Copy this file to change what stands below. Two modalities or one: common.get_config("three_stream")
instead of FACENet, which takes visible, near-infrared and thermal.
"""

from configs import common


def get_config():
    """The five options that matter; docs/data.md has the layout of the folders and of a table."""
    c = common.get_config("facenet")
    c.data.name = "folder/camera"  # or folder/scene, folder/none: what a query must not find
    c.data.image_size = (256, 128)  # height, width; (128, 256) for vehicles from the side
    c.train.epochs = 60
    c.train.identities_per_batch = 8
    c.train.samples_per_identity = 4
    return c
