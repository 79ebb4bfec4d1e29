"""Links that somebody planted beside an output, under a writer's names: nothing is moved or deleted where they lead."""

import pytest

from lorakit import load_adapter, save_adapter
from lorakit.testing import make_adapters

OLD, NEW = make_adapters(2, ranks=(2, 3), random_state=0)


@pytest.fixture
def out(tmp_path):
    return save_adapter(OLD, tmp_path / "out")


def test_links_of_a_writers_name_lead_nowhere(out, tmp_path):
    """Planted, they made a read delete and move files elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    for name in ("new", "old"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "precious").touch()
    (elsewhere / "lock").touch()
    ghost = tmp_path / "ghost"
    (tmp_path / ".ghost.deadbeef.lorakit").symlink_to(elsewhere)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError, match="ghost: does not exist"):
        load_adapter(ghost)
    assert sorted(tmp_path.rglob("*")) == before
    save_adapter(OLD, ghost)
    assert load_adapter(ghost).ranks == (2,)
    assert (elsewhere / "new" / "precious").exists()
    assert (elsewhere / "old" / "precious").exists()


def test_links_inside_a_writers_folder_lead_nowhere(out, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    folder = tmp_path / ".ghost.deadbeef.lorakit"
    folder.mkdir()
    (folder / "lock").touch()
    for name in ("new", "old"):
        (folder / name).symlink_to(elsewhere)
    with pytest.raises(FileNotFoundError, match="ghost: does not exist"):
        load_adapter(tmp_path / "ghost")
    save_adapter(OLD, tmp_path / "ghost")
    assert load_adapter(tmp_path / "ghost").ranks == (2,)
    assert (elsewhere / "precious").exists()
    assert not folder.exists()


def test_the_lock_of_a_writer_may_be_no_link(out, tmp_path):
    folder = tmp_path / ".out.deadbeef.lorakit"
    (folder / "new").mkdir(parents=True)
    (tmp_path / "precious").touch()
    (folder / "lock").symlink_to(tmp_path / "precious")
    save_adapter(NEW, out, overwrite=True)
    assert folder.exists()
    assert (tmp_path / "precious").exists()
