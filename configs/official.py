"""The `official` preset: what the authors' release computes, by fields of the one model."""

import ml_collections


def official(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`c` with the release's network, losses, flare label and preprocessing (docs/fidelity.md).

    It reproduces these defects of the release: the gate looks at the whole batch, so a test feature
    depends on its neighbours and on the order of the files; R keeps its tokens by N's mask; MFMP's
    heads are windows of tokens, behind two LayerNorms; no gradient passes the hard mask; KL and MC
    are averaged over classes; a flare label needs both modalities and the image's own range; the
    images of a sample are flipped and cropped apart.
    """
    c.model.dtype = "float32"  # as the release evaluates; it trains under fp16 autocast
    m = c.model.mfmp
    m.heads = 16
    m.head_width = 0  # the width of the ViT
    m.split = "windows"
    m.norms = 2
    m.norm_epsilon = 1e-5
    m.dropout = 0.5
    m.initializer = "torch"
    c.model.fce.mask = "hard"
    c.model.fce.mask_bias = 0.0
    c.model.fce.keep = "near_infrared"
    c.model.fce.gate = "batch"
    c.losses.mask_kl.weight = 0.8
    c.losses.mask_kl.reduction = c.losses.mc.reduction = "batch"
    c.data.flare_statistic = "histogram"
    c.data.flare_threshold = 0.095
    c.data.flare_rule = "both"
    c.data.test_resize = "bilinear"
    c.augment.per_modality = True
    c.evaluate.batch = 64
    return c
