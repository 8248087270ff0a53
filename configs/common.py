"""Every option once, with its unit and its values. An experiment is a small file that changes some.

On the command line: --config.section.option=value.
"""

import ml_collections


def weight(value: float) -> ml_collections.FieldReference:
    """A field for a number or a table; plain fields take no value of another type."""
    return ml_collections.FieldReference(value, field_type=object)


def get_config() -> ml_collections.ConfigDict:
    """FACENet as the paper has it (the `paper` preset), with the recipe for WMVeID863."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.data = d = ml_collections.ConfigDict()
    # wmveid863 | wmveid863/clean | rgbnt100 | msvr310 | rgbnt201 | rendered, or the user's own:
    # folder/camera | folder/scene | folder/none, by what makes a gallery entry junk. The protocol
    # of a set may be named in full: rgbnt100/camera, msvr310/scene, ...
    d.name = "wmveid863"
    d.root = ""  # the extracted folder, the .zip (also gs://), or a .csv (folder/* only)
    d.prepared = (
        "data/prepared"  # prepared data sets go here, each under a fingerprint of its source
    )
    d.image_size = (256, 128)  # height, width in pixels
    d.train_resize = "bicubic"  # bicubic | bilinear
    d.test_resize = "bicubic"
    d.validation_identities = 0  # identities held out of train to choose the best checkpoint
    # auto | always | never: images in device memory, or streamed from disk. auto: resident while
    # those of training and evaluation take no more than resident_share of a device's memory.
    d.resident = "auto"
    d.resident_share = 0.5  # a fraction
    d.workers = 0  # processes that read a stream; 0: threads of the main process
    d.incomplete = "error"  # error | skip: a name that one of the bands lacks
    d.flare_statistic = (
        "luma"  # luma: share of pixels with grey value 251..255 | histogram: release
    )
    d.flare_threshold = 0.05  # a fraction of the image
    d.flare_rule = "per_modality"  # per_modality | either | both

    c.model = m = ml_collections.ConfigDict()
    m.name = "facenet"
    m.variant = "B"  # mini | Ti | S | B | "" for the next three
    m.width = 0  # with variant "" only
    m.depth = 0
    m.heads = 0
    m.patch = 16  # pixels
    m.stride = 0  # pixels between patches, below m.patch they overlap; 0: m.patch
    m.drop_path = 0.1  # of the last block, falling linearly to 0 at the first
    m.shared_trunk = False  # one trunk for the three bands
    m.pretrained = ""  # a ViT file, also gs://: timm, Google .npz, Hugging Face; "none": none
    m.identities = 0  # classes of the classifiers; 0: as many as the training split has
    m.mfmp = ml_collections.ConfigDict()
    m.mfmp.enabled = True  # False: masks come from the trunk's own tokens
    m.mfmp.heads = 1
    m.mfmp.head_width = 0  # 0: the width of the ViT
    m.mfmp.split = "heads"  # heads | windows (release)
    m.mfmp.norms = 1  # LayerNorms on the query; the release has 2
    m.mfmp.norm_epsilon = 1e-6
    m.mfmp.dropout = 0.0
    m.mfmp.initializer = "zero_out"  # zero_out | torch
    m.fce = ml_collections.ConfigDict()
    m.fce.enabled = True
    m.fce.mask = "soft"  # soft | hard | straight_through
    m.fce.mask_bias = -4.0  # added to M before the mask; negative: masks start nearly closed
    m.fce.keep = "own"  # own: 1 - m of the band itself | near_infrared (release)
    m.fce.gate = "sample"  # sample | batch (release)
    m.flare_heads = True  # needed for the loss `mask_kl`
    m.classifier_std = 0.001  # random start of the classifiers
    m.neck_feature = "before"  # before | after the BatchNorm: what is matched
    m.dtype = "float32"  # float32 | bfloat16, of matrix products
    m.attention = "xla"  # xla | cudnn (GPU, bfloat16; training on an even number of tokens only)
    # none | dots | full: what a block computes again in the backward pass, to save memory:
    # nothing | all but the results of its dense layers | everything
    m.remat = "none"
    m.unroll = 1  # layers per step of the loop over layers; 0: all

    # Weights of the losses: a number, or ((progress, weight), ...) with progress in 0..1.
    c.losses = s = ml_collections.ConfigDict()
    s.id = weight(1.0)
    s.triplet = weight(1.0)
    s.mask_kl = weight(1.0)
    s.mc = weight(1.0)
    s.flare = weight(0.0)  # cross-entropy of the flare heads against the flare label, an extension
    s.mmm = weight(0.0)  # 3M, HC and CdC, the losses that Table 5 compares with mc
    s.hc = weight(0.0)
    s.cdc = weight(0.0)
    c.loss_options = o = ml_collections.ConfigDict()
    o.label_smoothing = 0.0
    o.margin = 0.0  # of the triplet loss; 0: soft margin
    o.kl_reduction = "sample"  # sample | batch (release)

    c.augment = a = ml_collections.ConfigDict()
    a.flip = 0.5  # probability
    a.pad = 10  # pixels of black border before the random crop
    a.erase = 0.0  # probability of random erasing
    a.draw = "shared"  # shared: once for the three images of a triplet | independent (release)

    c.train = t = ml_collections.ConfigDict()
    t.identities_per_batch = 8  # P
    t.samples_per_identity = 4  # K
    t.epochs = 120
    t.steps = 0  # stop after so many steps; 0: after the epochs
    t.steps_per_dispatch = 20  # steps per call of the device
    t.shard_state = False  # divide parameters and optimiser over the devices (FSDP), to save memory
    t.shard_above = 65536  # elements; smaller arrays stay whole on every device
    t.evaluate_every = 5  # epochs; 0: at the end only
    t.save_every = 5  # epochs; 0: at the end only
    t.save_every_steps = 0  # steps, besides save_every

    c.optim = p = ml_collections.ConfigDict()
    p.name = "sgd"  # sgd | adamw
    p.learning_rate = 3e-3
    p.schedule = "recipe"  # recipe: per epoch, facenet.md section 4 | cosine: per step, to 0
    p.warmup = 5.0  # epochs
    p.weight_decay = 1e-4
    p.bias_rate = 2.0  # learning rate of biases relative to the others
    p.momentum = 0.9  # sgd
    p.betas = (0.9, 0.999)  # adamw
    p.clip = 0.0  # largest global gradient norm; 0: off

    c.evaluate = e = ml_collections.ConfigDict()
    e.batch = 64  # triplets
    e.export = "last"  # last | best: the checkpoint whose embeddings are exported
    e.floors = False  # also score the untrained network and raw pixels
    e.breakdown = False  # also score bands alone, and flared and clean queries apart
    return c
