"""Options that name adapters: a name that no adapter has is an error with the name that is near."""

import pytest


@pytest.fixture
def named(tasks):
    return (*tasks[:2], "--name", "law", "--name", "medicine")


NEAR = "names 'lwa'; did you mean 'law'? The adapters are law, medicine."


def test_initial(lorakit_, named, tasks, out):
    for command in (("inspect", *named), ("merge", *named, "-o", out), ("diff", *named)):
        text = lorakit_(*command, "--initial", f"lwa={tasks[0]}", code=2).stderr
        assert f"initial {NEAR[:-1]}" in text

    text = lorakit_("convert", tasks[0], "--name", "law", "-o", out, "--initial", f"lwa={tasks[0]}", code=2).stderr
    assert "--initial names 'lwa'; did you mean 'law'? The adapters are law." in text


def test_initial_of_what_is_made_again(lorakit_, named, tasks, out, tmp_path):
    lorakit_("merge", *named, "-o", out)
    text = lorakit_("replay", out, "-o", tmp_path / "again", "--initial", f"lwa={tasks[0]}", code=2).stderr
    assert f"--initial {NEAR}" in text


def test_weights(lorakit_, named, out):
    assert f"--weights {NEAR}" in lorakit_("merge", *named, "-o", out, "-w", "lwa=1,medicine=2", code=2).stderr


def test_parts_of_the_model(lorakit_, named, out):
    text = lorakit_("merge", *named, "-o", out, "--module-weights", "lwa@.*=0.5", code=2).stderr
    assert f"--module-weights {NEAR}" in text
    text = lorakit_("merge", *named, "-o", out, "--block-weights", "lwa@IN=0.5", code=2).stderr
    assert "blocks names an adapter 'lwa', expected one of 'law', 'medicine'" in text
    assert "did you mean 'law'?" in text


def test_tasks_of_a_picture(lorakit_, named, tmp_path):
    pytest.importorskip("matplotlib")
    for picture in ("clusters", "map"):
        text = lorakit_("plot", picture, *named, "-o", tmp_path / "a.png", "--task", "lwa=x", code=2).stderr
        assert f"--task {NEAR}" in text


def test_parameters(lorakit_, named, out):
    text = lorakit_("merge", *named, "-o", out, "--method", "dare", "-p", "densty=0.5", code=2).stderr
    assert "did you mean 'density'?" in text
