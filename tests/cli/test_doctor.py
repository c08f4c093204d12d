"""``doctor``: the ranges of pyproject.toml, read from the metadata of the installed distribution."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from pathlib import Path

import pytest

from edgecompress.cli import doctor, main
from edgecompress.cli.doctor import RUNTIME, check_packages
from edgecompress.formats import packages
from edgecompress.formats.packages import Requirement, parse_requirement, parse_requirements

ROOT = Path(__file__).parent.parent.parent


def declared() -> list[Requirement]:
    """What pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"]]
    texts += [f"{text}; extra == '{extra}'" for extra, of in project["optional-dependencies"].items() for text in of]
    found = list(parse_requirements(texts))
    assert len(found) == len(texts)
    return found


def rows(installed: dict[str, str | None]) -> dict[str, doctor.Package]:
    return {row.name: row for row in check_packages(declared(), installed)}


def test_the_table_is_that_of_pyproject(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    table = {(row["name"], row["range"], by) for row in told["packages"] for by in row["needed_by"]}
    assert table == {(each.name, each.specifier, each.extra or RUNTIME) for each in declared()}
    assert len({(row["name"], row["range"]) for row in told["packages"]}) == len(told["packages"])
    assert told["remark"] == ""


def test_the_text_names_every_package_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--extras"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in {each.name for each in declared()}:
        shown = [line for line in lines if line.startswith(f"{name} ") or (" lacks " in line and name in line)]
        assert shown, name


def test_a_package_that_does_not_fit_is_named() -> None:
    found = rows({"transformers": "4.57.6", "numpy": "2.4.6", "torch": "2.13.0+cpu", "numba": "0.68.2"})
    assert not found["transformers"].fits
    assert "transformers 4.57.6 does not fit edgecompress" in found["transformers"].remark
    assert found["transformers"].remark.endswith("which needs >=5.23,<6")
    assert found["numpy"].fits
    assert found["torch"].fits
    assert found["torch"].needed_by == ("export",)
    assert not found["numba"].fits
    assert found["tokenizers"].remark == "not installed"
    assert found["onnx"].remark == "not installed: pip install 'edgecompress[export]'"


def test_one_of_a_package_and_its_gpu_build_is_enough_and_both_are_too_many() -> None:
    both = rows({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"})["onnxruntime"]
    assert not both.fits
    assert "overwrite each other" in both.remark
    instead = rows({"onnxruntime-gpu": "1.32.0"})["onnxruntime"]
    assert (instead.fits, instead.remark) == (True, "onnxruntime-gpu 1.32.0 instead")
    old = rows({"onnxruntime-gpu": "1.20.0"})["onnxruntime"]
    assert not old.fits
    assert "onnxruntime-gpu 1.20.0 does not fit" in old.remark
    neither = rows({})["onnxruntime"]
    assert (neither.fits, neither.remark) == (False, "not installed")


def test_packages_for_other_systems_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.sys, "platform", "darwin")
    monkeypatch.setattr(packages.platform, "machine", lambda: "arm64")
    lines = (
        "triton>=3; sys_platform == 'linux' and extra == 'triton'",
        "cuda-core>=1; sys_platform != 'darwin' and extra == 'gpu'",
        "a; platform_machine == 'arm64' or sys_platform == 'linux'",
        "b; python_version < '3.15'",
        "c; python_version ~= '3.11'",
    )
    required = packages.parse_requirements(lines)
    assert [each.applies_here for each in required] == [False, False, True, True, True]
    assert [each.name for each in doctor.check_packages(required, {})] == ["a", "b", "c"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_without_a_distribution_it_says_so(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, "requires", missing)
    assert main(["doctor", *flags]) == 0
    assert "runs from its source and is not installed as a distribution" in capsys.readouterr().out


def test_metadata_of_another_version_is_remarked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "__version__", "99.0")
    assert doctor.find_requirements()[1].endswith("which is installed; this is 99.0")


@pytest.mark.parametrize(
    ("text", "fitting", "other"),
    [
        ("a>=2.0,<3", ("2", "2.0", "2.9.9", "2.0.0+cpu"), ("1.99", "3", "3.0.0")),
        ("a==0.68.1", ("0.68.1", "0.68.1.0"), ("0.68.10", "0.68")),
        ("a (>1,!=1.5,<=2)", ("1.1", "2.0", "1.5.1"), ("1", "1.5.0", "2.0.1")),
        ("a", ("0", "99"), ()),
    ],
)
def test_ranges(text: str, fitting: tuple[str, ...], other: tuple[str, ...]) -> None:
    requirement = parse_requirement(text)
    assert requirement is not None
    assert all(map(requirement.admits, fitting))
    assert not any(map(requirement.admits, other))


def test_what_is_read_of_a_line() -> None:
    found = parse_requirement('Cyclonedx_python.lib[json-validation]<12,>=11.12 ; extra == "provenance"')
    assert found == Requirement(name="cyclonedx-python-lib", specifier=">=11.12,<12", extra="provenance")
    assert parse_requirement("<2") is None
    with pytest.raises(ValueError, match="~=2"):
        Requirement(name="a", specifier="~=2").admits("2")
