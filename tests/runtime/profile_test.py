import jax.numpy as jnp
import pytest
from etils import epath

from data_tfds.errors import UserError
from facenet_jax.runtime.profile import Profile


def test_a_trace_holds_the_steps_between_its_edges(tmp_path):
    profile = Profile("2:4", tmp_path / "profile", 0, 6)
    assert profile.until(0) == [2, 4]
    assert profile.until(2) == [2]
    assert profile.until(4) == []
    for step in range(2):
        profile.at(step, None)
    assert not (tmp_path / "profile").exists()
    profile.at(2, None)
    jnp.ones(3).sum().block_until_ready()
    profile.at(4, None)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["3", "3:", "a:b", "5:5", "5:4", "-1:3", "1:7", "0:3"])
def test_other_steps_are_refused(text, tmp_path):
    with pytest.raises(UserError, match="with 1 <= FIRST < LAST <= 6"):
        Profile(text, tmp_path, 1, 6)


def test_without_steps_nothing_is_traced(tmp_path):
    profile = Profile("", tmp_path / "profile", 0, 6)
    assert profile.until(0) == []
    profile.at(0, None)
    assert not (tmp_path / "profile").exists()


def test_a_bucket_takes_no_trace():
    with pytest.raises(UserError, match="needs a --workdir on a disk"):
        Profile("1:2", epath.Path("gs://bucket/run/profile"), 0, 6)
