import jax.numpy as jnp
import pytest

from data_tfds.errors import UserError
from facenet_jax.losses import centres
from tests.support.loss_twins import LABELS, features


@pytest.mark.parametrize(
    ("loss", "option"), [(centres.hc, {"metric": "l1"}), (centres.cdc, {"norm": "none"})]
)
def test_options_that_do_not_exist_are_refused(loss, option):
    with pytest.raises(UserError, match=repr(*option.values())):
        loss(jnp.asarray(features(), jnp.float32), jnp.asarray(LABELS), **option)
