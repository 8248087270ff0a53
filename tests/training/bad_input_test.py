"""What a user can get wrong in a config, one sentence each, before anything is written.

Bad data files have their table in tests/data_tfds/bad_files_test.py, bad embedding files theirs in
tests/retrieval/evaluate_embeddings_test.py, command lines in tests/runtime/cli_test.py.
"""

import re

import pytest

from configs import common
from data_tfds.errors import UserError
from facenet_jax.runtime import cli
from facenet_jax.train import refuse_missing, train
from tests.support import small_datasets as trees
from tests.support import tiny_run as tiny


def sentence(text):
    """The only line of stderr that is neither a progress bar nor the log's."""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    bar = re.compile(r"(preparing \S+|decoding \w+): .*\[\d\d:\d\d.*\]")
    lines = [line for line in lines if line and not bar.fullmatch(line)]
    (line,) = (line for line in lines if not re.match(r"([IW]\d{4}|\d\d:\d\d:\d\d) ", line))
    assert line.endswith(".")
    return line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__name": "msvr310/camera"}, "it has msvr310/scene"),
        ({"data__train_resize": "nearest"}, "config.data.train_resize is 'nearest'"),
        ({"data__validation_identities": 4}, "has only 4 identities; hold out fewer"),
        ({"data__validation_identities": -1}, "config.data.validation_identities is -1"),
        ({"data__flare_rule": "all"}, "config.data.flare_rule is 'all'"),
        ({"train__identities_per_batch": 16}, "has 4 identities, but a batch takes"),
        (
            {"sampler__name": "kp"},
            "config.sampler.name is 'kp'; it must be 'pk' or 'cross_modal', or the import",
        ),
        ({"model__attention": "cudnn"}, "devices are of the kind 'cpu' and"),
        (
            {"train__samples_per_identity": 3},
            "= 12 does not divide by the 8 devices; choose a mult",
        ),
        ({"evaluate__batch": 12}, "config.evaluate.batch = 12 does not divide by the 8 devices"),
        ({"optim__name": "lion", "optim__clip": -1.0}, "config.optim.clip is -1.0"),
        ({"data__incomplete": "drop"}, "config.data.incomplete is 'drop'"),
    ],
)
def test_a_bad_option_of_the_config_is_one_sentence_before_training(
    changes, words, tmp_path, capsys
):
    config = tiny.config(**changes)
    config.data.root = str(trees.wmveid863(tmp_path / "set"))
    config.data.prepared = str(tmp_path / "prepared")
    assert cli.guarded(lambda: train(config, tmp_path / "run")) == 1
    assert words in sentence(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_all_that_is_missing_is_said_at_once():
    """Neither the data set nor the weights are there: one sentence names both."""
    for pretrained, words in (("", "is not set"), ("no.pth", r"weights no\.pth .* do not exist")):
        c = common.get_config()
        c.model.pretrained, c.data.root = pretrained, "/nowhere"
        with pytest.raises(UserError, match=f"Two things are missing.*{words}.*not at /nowhere"):
            refuse_missing(c)
        c.data.name = "tests.support.small_datasets.wmveid863"  # a function: it makes its data
        with pytest.raises(UserError, match=words) as error:
            refuse_missing(c)
        assert "Two things" not in str(error.value)
