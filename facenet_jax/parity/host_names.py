"""The names of tensors in HAMNet's, PFNet's and IEEE's code, and their places in our variables.

A row is (pattern of their name, our path, layout). <part>@<row> is a row of a part of ours that has
an axis of modalities.
"""

import numpy as np

from data_tfds.samples import NEAR_INFRARED, THERMAL, VISIBLE
from facenet_jax.models import pfnet
from facenet_jax.weights.names.tables import IGNORED, image_kernel, same

SHORT = {VISIBLE: "r", NEAR_INFRARED: "n", THERMAL: "t"}
NAMES = tuple(SHORT)


def flat_kernel(x: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution [out, in, 1, 1], or a Linear [out, in], as the kernel of a Dense."""
    return x.reshape(x.shape[:2]).T


def norm_of(theirs: str, ours: str, frozen: bool = False) -> list[tuple]:
    """Rows of a torch BatchNorm, whose bias is no parameter of ours where it is `frozen`."""
    bias = "batch_stats" if frozen else "params"
    return [
        (rf"{theirs}\.weight", f"params/{ours}/scale", same),
        (rf"{theirs}\.bias", f"{bias}/{ours}/bias", same),
        (rf"{theirs}\.running_mean", f"batch_stats/{ours}/mean", same),
        (rf"{theirs}\.running_var", f"batch_stats/{ours}/var", same),
    ]


def dense(theirs: str, ours: str, bias: bool = True) -> list[tuple]:
    """Rows of a Linear or of a 1 x 1 convolution."""
    rows = [(rf"{theirs}\.weight", f"params/{ours}/kernel", flat_kernel)]
    return [*rows, (rf"{theirs}\.bias", f"params/{ours}/bias", same)] if bias else rows


def resnet_rows(theirs: str, ours: str) -> list[tuple]:
    """Rows of a ResNet with bottlenecks."""
    block, at = rf"{theirs}\.layer([1-4])\.(\d{{1,3}})", rf"{ours}/layer\1_\2"
    return [
        (rf"{theirs}\.conv1\.weight", f"params/{ours}/conv1/kernel", image_kernel),
        *norm_of(rf"{theirs}\.bn1", f"{ours}/bn1"),
        (rf"{block}\.conv([123])\.weight", rf"params/{at}/conv\3/kernel", image_kernel),
        *norm_of(rf"{block}\.bn([123])", rf"{at}/bn\3"),
        (rf"{block}\.downsample\.0\.weight", f"params/{at}/shortcut_conv/kernel", image_kernel),
        *norm_of(rf"{block}\.downsample\.1", f"{at}/shortcut_bn"),
        (r".*\.num_batches_tracked", IGNORED, same),
    ]


HAMNET_ROWS = [
    row
    for i, modality in enumerate(NAMES)
    for row in (
        *resnet_rows(rf"branch_{i}\.base", f"trunk_{modality}"),
        *norm_of(rf"branch_{i}\.bottleneck", f"neck@{i}", frozen=True),
        *dense(rf"branch_{i}\.conv1", f"class_map@{i}", bias=False),
        (rf"branch_{i}\.classifier\.weight", IGNORED, same),  # takes no part
    )
] + dense("classifier", "score")


STREAMS = {
    "RGB": VISIBLE,
    "NI": NEAR_INFRARED,
    "TI": THERMAL,
    "RT": f"{VISIBLE}_{THERMAL}",
    "RN": f"{VISIBLE}_{NEAR_INFRARED}",
}

PFNET_ROWS = [
    *(
        row
        for i, modality in enumerate(NAMES)
        for row in resnet_rows(rf"backbone\.{i}", f"trunk_{modality}")
    ),
    *(
        row
        for i, (theirs, ours) in enumerate(STREAMS.items())
        for row in (
            *dense(rf"reduce_layer\.{i}\.layers\.0", f"reduce_{ours}/conv", bias=False),
            *norm_of(rf"reduce_layer\.{i}\.layers\.1", f"reduce_{ours}/bn"),
            *(
                each
                for part in range(pfnet.STRIPES)
                for each in (
                    *dense(rf"fc_{theirs}\.{part}\.0\.0", f"part{part + 1}_{ours}"),
                    *norm_of(rf"fc_{theirs}\.{part}\.0\.1", f"part{part + 1}_bn_{ours}"),
                    *dense(rf"classifier_{theirs}\.{part}", f"classifier{part + 1}_{ours}"),
                )
            ),
        )
    ),
    *dense("classifier_all", "classifier_all"),
]


def ieee_rows() -> list[tuple]:
    """The table of IEEE."""
    found = []
    for i, (modality, short) in enumerate(SHORT.items()):
        found += [
            *resnet_rows(rf"backbone\.{i}", f"trunk_{modality}"),
            *dense(rf"convOne\.{i}\.layers\.0", f"own_{modality}/conv", bias=False),
            *norm_of(rf"convOne\.{i}\.layers\.1", f"own_{modality}/bn"),
            *dense(rf"convAvgRest\.{i}\.layers\.0", f"others_{modality}/conv", bias=False),
            *norm_of(rf"convAvgRest\.{i}\.layers\.1", f"others_{modality}/bn"),
            *dense(rf"CA\.{i}\.fc\.0", f"attention1_{modality}", bias=False),
            *dense(rf"CA\.{i}\.fc\.2", f"attention2_{modality}", bias=False),
            *dense(rf"reduce_layer\.{i}\.layers\.0", f"reduce_{modality}/conv", bias=False),
            *norm_of(rf"reduce_layer\.{i}\.layers\.1", f"reduce_{modality}/bn"),
            *dense(rf"REM\.{i}\.conv_part", f"image_{modality}"),
            (rf"REM\.{i}\.param", f"params/gamma_{modality}", same),
            (rf"REM\.{i}\.conv_(query|value)\..*", IGNORED, same),  # without effect
        ]
        upper = short.upper()
        for part in range(6):
            found += [
                *dense(rf"fc_{upper}\.{part}\.0", f"part{part + 1}_{modality}"),
                *norm_of(rf"fc_{upper}\.{part}\.1", f"part{part + 1}_bn_{modality}"),
                *dense(rf"classifier_{upper}\.{part}", f"classifier{part + 1}_{modality}"),
            ]
    return found
