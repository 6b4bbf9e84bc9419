"""What people install: the wheel, the source distribution and the editable install.

It builds and installs, so it runs only with `-m packaging`.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from program import HANG, ROOT

NOT_SOURCE = (
    ".git",
    ".venv",
    "build",
    "dist",
    "runs",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)

# Run in the new environment, outside the tree: what our distribution brought, and where from.
INSPECT = """
import importlib, importlib.metadata, importlib.util, json, pkgutil
import fastformer, fastformer.kernels
names = importlib.metadata.packages_distributions()
modules = [m.name for m in pkgutil.walk_packages(fastformer.__path__, "fastformer.")]
# kernels has no __init__.py, so it is not walked into.
kernels = fastformer.kernels
modules += [m.name for m in pkgutil.iter_modules(kernels.__path__, "fastformer.kernels.")]
# What stands on an extra says which one it is.
modules.remove("fastformer.sklearn")
try:
    import fastformer.sklearn
except ImportError as error:
    assert "pip install 'fastformer[sklearn]'" in str(error)
else:
    raise AssertionError("scikit-learn is installed")
loaded = [importlib.import_module(name) for name in modules if not name.endswith("__main__")]
loaded.append(fastformer)
files = [module.__file__ for module in loaded if module.__file__]
print(json.dumps({
    "top_level": sorted(name for name, owners in names.items() if "fastformer" in owners),
    "kernels": importlib.util.find_spec("kernels") is not None,
    "files": sorted(files),
}))
"""


def run(*command: str | Path, directory: Path) -> str:
    """Run a command and return its standard output; show all that it wrote if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=directory, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def expected_files(root: Path) -> set[str]:
    """List what the package must hold, as paths below its parent directory."""
    package = root / "fastformer"
    own = [path for path in package.rglob("*.py") if package / "kernels" not in path.parents]
    names = {path.relative_to(root).as_posix() for path in own}
    names |= {f"fastformer/kernels/{path.name}" for path in (root / "kernels").glob("*.py")}
    web = [path.relative_to(root).as_posix() for path in (package / "analysis/web").iterdir()]
    return names | {"fastformer/py.typed", *web}


def packaged_files(wheel: Path) -> set[str]:
    """List what a wheel installs, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tree, for builds leave files behind."""
    target = tmp_path_factory.mktemp("source") / "tree"
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return target


@pytest.fixture(scope="module")
def distributions(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the source distribution, the wheel from it, and the wheel from the tree."""
    target = tmp_path_factory.mktemp("distributions")
    run(sys.executable, "-m", "build", "--outdir", target / "from-sdist", source, directory=target)
    run(
        *(sys.executable, "-m", "build", "--wheel", "--outdir", target / "from-tree", source),
        directory=target,
    )
    (sdist,) = target.glob("from-sdist/*.tar.gz")
    (wheel_from_sdist,) = target.glob("from-sdist/*.whl")
    (wheel,) = target.glob("from-tree/*.whl")
    return {"sdist": sdist, "wheel from sdist": wheel_from_sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def environment(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a clean virtual environment with the wheel and nothing but its dependencies."""
    directory = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", directory, directory=directory)
    run(directory / "bin/pip", "install", "--quiet", distributions["wheel"], directory=directory)
    return directory


@pytest.mark.packaging
@pytest.mark.parametrize("which", ["wheel", "wheel from sdist"])
def test_the_wheel_holds_the_package_and_nothing_else(
    distributions: dict[str, Path], which: str
) -> None:
    assert packaged_files(distributions[which]) == expected_files(ROOT)


@pytest.mark.packaging
def test_the_source_distribution_has_the_readme_and_the_licence(
    distributions: dict[str, Path],
) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names


@pytest.mark.packaging
def test_an_installed_wheel_brings_one_name_and_works(environment: Path, tmp_path: Path) -> None:
    found = json.loads(run(environment / "bin/python", "-c", INSPECT, directory=tmp_path))
    assert found["top_level"] == ["fastformer"]
    assert not found["kernels"]
    installed = {Path(name).relative_to(environment).as_posix() for name in found["files"]}
    assert any("/site-packages/fastformer/kernels/" in name for name in installed)
    doctor = run(environment / "bin/fastformer", "doctor", "--json", directory=tmp_path)
    assert json.loads(doctor.splitlines()[-1])["versions"]["fastformer"] != "not installed"


@pytest.mark.packaging
def test_an_editable_install_runs_from_the_tree(
    environment: Path, source: Path, tmp_path: Path
) -> None:
    pip = environment / "bin/pip"
    run(pip, "install", "--quiet", "--no-deps", "--editable", source, directory=tmp_path)
    found = json.loads(run(environment / "bin/python", "-c", INSPECT, directory=tmp_path))
    assert not found["kernels"]
    files = {Path(name).resolve().relative_to(source).as_posix() for name in found["files"]}
    tree = {name.replace("fastformer/kernels/", "kernels/") for name in expected_files(source)}
    not_modules = {name for name in tree if not name.endswith(".py")}
    assert tree - files == {"fastformer/__main__.py", "fastformer/sklearn.py", *not_modules}


def test_a_module_that_is_left_out_is_noticed(tmp_path: Path) -> None:
    wheel = tmp_path / "fastformer-1-py3-none-any.whl"
    left_out = "fastformer/kernels/_compile.py"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in expected_files(ROOT) - {left_out}:
            archive.writestr(name, "")
        archive.writestr("fastformer-1.dist-info/RECORD", "")
    assert expected_files(ROOT) - packaged_files(wheel) == {left_out}


@pytest.mark.smoke
def test_the_kernels_are_reached_by_one_name_only() -> None:
    link = ROOT / "fastformer" / "kernels"
    assert link.is_symlink() and link.readlink() == Path("../kernels")
    assert not (ROOT / "kernels" / "__init__.py").exists()
