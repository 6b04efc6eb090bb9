"""The picture of a verification: what it shows, byte for byte the same, and nothing that breaks it."""

import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from analyzer.base.errors import PlotError
from analyzer.base.pictures import check_plot
from analyzer.base.records import Coordinate
from analyzer.cli.main import cli
from analyzer.verify.pictures import draw, plot_verification
from analyzer.verify.records import LayerMaxima, Profile, SuperWeight, VerifyResult

PEAK = LayerMaxima(2, -2999.0, 1229, 24045.0, 507, 24081.0, 507)
LAYERS = (
    LayerMaxima(0, 8.1, 1194, 30.6, 308, 30.6, 308),
    LayerMaxima(1, 0.0, 0, -187.0, 507, 230.0, 507),
    PEAK,
    LayerMaxima(3, -3.24, 1203, 9.0, 507, 24072.0, 507),
)
PROFILE = Profile(
    Coordinate(2, None, 507, 1229), 0, (0, 1, 2, 3), (19.5, 230.0, 24081.0, -24072.0), (19.5, 230.0, 6463.0, 0.0)
)
WEIGHT = SuperWeight(2, None, 507, 1229, 5.875, 0.733, 2, "confirmed", "critical", 0.73, 2.9, 4.7, 2.9, 1881)
RESULT = VerifyResult(
    model="me/model", revision=None, commit="0123456789" * 4, model_type="llama", prompt="Apple Inc.",
    tokens=("Apple", " Inc", "."), dtype="float32", device="cpu", verdict="found", layers=LAYERS, super_activations=(),
    late_activations=(), outlier_features=(), asked=(), columns=(), writes=(),
    super_weights=(WEIGHT,), joint=None, masking=(), profile=PROFILE, prompts=0,
    recurrences=(), early_stop=False, bytes_read=0, checkpoint_bytes=0,
)  # fmt: skip


def size(path):
    """Return a PNG file's width and height in pixels."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def drawn(result):
    """Return the axes of a picture that was rendered, and so has its limits and extents."""
    figure = draw(result)
    figure.canvas.draw()
    return figure.axes


def labels(axes):
    return [text.get_text() for text in axes.texts]


def test_the_file_is_a_png_of_the_same_bytes_each_time(tmp_path):
    for name in ("one.png", "two.PNG"):
        plot_verification(RESULT, tmp_path / name)
    assert size(tmp_path / "one.png") == (1000, 1050)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.PNG").read_bytes()
    assert b"matplotlib" not in (tmp_path / "one.png").read_bytes().lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.PNG"]


def test_each_peak_is_named_with_its_channel_and_its_sign():
    inputs, outputs, _ = drawn(RESULT)
    assert labels(inputs) == ["layer 2, col 1229: -2,999"]
    assert labels(outputs) == ["layer 2, row 507: +24,045"]
    assert inputs.texts[0].xy == (2, 2999.0)
    assert list(inputs.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert list(inputs.lines[0].get_ydata()) == [8.1, 0.0, 2999.0, 3.24]
    assert list(outputs.lines[0].get_ydata()) == [30.6, 187.0, 24045.0, 9.0]


def test_the_profile_is_drawn_with_and_without_the_weight():
    axes = drawn(RESULT)[2]
    assert [list(line.get_ydata()) for line in axes.lines] == [[19.5, 230, 24081, 24072], [19.5, 230, 6463, 0]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["with the super weight (layer 2, row 507, col 1229)", "with it set to zero"]
    assert "channel 507" in axes.get_title()
    assert "position 0, “Apple”" in axes.get_title()


def test_a_weight_that_is_not_confirmed_is_not_called_super():
    expert = replace(PROFILE, coordinate=Coordinate(2, 5, 507, 1229))
    for change in ({"super_weights": (replace(WEIGHT, status="coincident", effect="inert"),)}, {"profile": expert}):
        names = [text.get_text() for text in drawn(replace(RESULT, **change))[2].get_legend().get_texts()]
        assert names[0].startswith("with the weight (layer 2, ")
    assert names[0] == "with the weight (layer 2, expert 5, row 507, col 1229)"


def test_the_title_is_model_and_commit():
    assert draw(RESULT).get_suptitle() == "me/model (012345678901)\n3 tokens of “Apple Inc.” in float32"
    local = replace(RESULT, commit="sha256:" + "ab" * 32)
    assert draw(local).get_suptitle().startswith("me/model (sha256:abababababab)\n")
    assert draw(replace(RESULT, commit=None)).get_suptitle().startswith("me/model\n")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$_{x}", "$_{x}"),
        ("$\\frac{$", "$\\frac{$"),
        ("evil\x1b[2J\nname", "evil\\x1b[2J\\nname"),
        ("模型" * 99, ("\\u6a21\\u578b" * 6)[:69] + "…"),
        ("模型", "\\u6a21\\u578b"),
        ("Größe", "Größe"),
        ("x" * 300, "x" * 69 + "…"),
    ],
)
def test_names_are_text_and_nothing_else(tmp_path, name, shown):
    result = replace(RESULT, model=name, commit=None, prompt=name, tokens=(name,) * 3)
    plot_verification(result, tmp_path / "x.png")
    assert size(tmp_path / "x.png") == (1000, 1050)
    figure = draw(result)
    assert figure.get_suptitle() == f"{shown}\n3 tokens of “{shown}” in float32"
    figure.canvas.draw()
    for text in (figure._suptitle, figure.axes[2].title):
        assert not text.get_parse_math()
        assert text.get_window_extent().width < 1000


def test_without_a_profile_there_are_two_panels(tmp_path):
    result = replace(RESULT, profile=None, super_weights=(), verdict="none")
    assert len(drawn(result)) == 2
    plot_verification(result, tmp_path / "x.png")
    assert size(tmp_path / "x.png") == (1000, 725)


@pytest.mark.filterwarnings("error")
def test_magnitudes_of_every_kind_are_drawn(tmp_path):
    def result(*values):
        layers = tuple(LayerMaxima(n, value, n, value, n, value, n) for n, value in enumerate(values))
        return replace(RESULT, layers=layers, profile=None)

    for values in ((0.0, 0.0), (), (float("nan"), float("inf"))):
        axes = drawn(result(*values))[0]
        assert labels(axes) == []
        assert axes.get_ylim() == (0, 1)
    for values, scale, bottom in (
        ((5.0,), "linear", 0),
        ((5.0, 500.0), "linear", 0),
        ((5.0, 501.0), "symlog", 1),
        ((5.0, 0.0, -501.0), "symlog", 0),
        ((1e-30, 3e5), "symlog", 0),
        ((1e-38, 1e38, float("inf")), "symlog", 0),
    ):
        axes = drawn(result(*values))[0]
        assert (axes.get_yscale(), axes.get_ylim()[0]) == (scale, bottom)
        (label,) = labels(axes)
        assert f"col {max((abs(v), n) for n, v in enumerate(values) if abs(v) < 1e39)[1]}:" in label
        plot_verification(result(*values), tmp_path / "x.png")
        assert size(tmp_path / "x.png") == (1000, 725)


def test_the_labels_stay_inside_the_panel():
    for peak in range(30):
        values = [24045.0 if n == peak else 5.0 for n in range(30)]
        layers = tuple(LayerMaxima(n, value, 14335, value, 4095, value, 0) for n, value in enumerate(values))
        for axes in drawn(replace(RESULT, layers=layers, profile=None)):
            text, panel = axes.texts[0].get_window_extent(), axes.get_window_extent()
            assert panel.x0 < text.x0 < text.x1 < panel.x1
            assert panel.y0 < text.y0 < text.y1 < panel.y1


@pytest.mark.parametrize("name", ["x.svg", "x", ".png", "x.png.pdf"])
def test_only_png(tmp_path, name):
    for call in (lambda path: plot_verification(RESULT, path), check_plot):
        with pytest.raises(PlotError, match=r"give a name that ends in \.png"):
            call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, why in (
        (tmp_path / "nowhere" / "x.png", "No such file or directory"),
        (tmp_path / "file" / "x.png", "Not a directory"),
        (tmp_path / "folder.png", "it is a folder"),
        (tmp_path / ("x" * 300 + "\n.png"), "File name too long"),
        (Path("/proc/x.png"), ""),
    ):
        with pytest.raises(PlotError, match=f"cannot write .*{why}") as caught:
            plot_verification(RESULT, path)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PlotError, match=r"x\.png: No space left on device"):
        plot_verification(RESULT, tmp_path / "x.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("command", ["verify", "analyze"])
def test_the_commands_look_at_the_destination_first(tmp_path, command):
    for name, why in (("x.svg", "ends in .png"), ("nowhere/x.png", "No such file")):
        result = CliRunner().invoke(cli, [command, str(tmp_path / "no-model"), "--plot", str(tmp_path / name)])
        assert isinstance(result.exception, PlotError)
        assert why in str(result.exception)


def test_a_plot_that_fails_does_not_cost_the_result(folder, tmp_path, monkeypatch):
    def full(*_):
        raise PlotError("the disk is full")

    monkeypatch.setattr("analyzer.analyze.verifying.verify_model", lambda *_, **__: RESULT)
    monkeypatch.setattr("analyzer.verify.pictures.plot_verification", full)
    result = CliRunner().invoke(cli, ["verify", str(folder), "--plot", str(tmp_path / "x.png")])
    assert isinstance(result.exception, PlotError)
    assert "me/model (012345678901)" in result.stdout


def test_no_command_without_a_plot_imports_matplotlib():
    rooms = "analyzer.cli.main, analyzer.analyze.verifying, analyzer.verify.report"
    script = f"import sys, {rooms}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == 0
    pictures = "analyzer.verify.pictures, analyzer.diff.reports.pictures"
    script = f"import sys, {pictures}; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == 0
