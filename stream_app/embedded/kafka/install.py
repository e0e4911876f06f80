"""Find Apache Kafka's jars, and fetch them with Maven.

43 MB, once; the folder is ``TAILRACE_KAFKA_JARS`` or ``$XDG_CACHE_HOME/tailrace/kafka/VERSION/libs``
(``~/.cache`` where the variable is not set).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from stream_app.errors import EmbeddedStackError

__all__ = ["KAFKA_VERSION", "default_jars_directory", "find_jars", "find_java", "install_kafka", "kafka_missing"]

KAFKA_VERSION = "4.4.0"
"""The version in ``pom.xml``."""

_SERVER_JAR = "kafka_2.13-*.jar"
_NEEDS_JAVA = (
    "Apache Kafka needs Java 17 or newer: install it (Debian, Ubuntu: apt-get install openjdk-17-jre-headless)"
)
_MAVEN_TIMEOUT_S = 600.0


def default_jars_directory() -> Path:
    """The folder looked into (and installed to) when none is given."""
    chosen = os.environ.get("TAILRACE_KAFKA_JARS")
    if chosen:
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tailrace" / "kafka" / KAFKA_VERSION / "libs"


def find_java() -> Path:
    """The JVM: ``$JAVA_HOME/bin/java``, else the first on the path.

    Raises:
        EmbeddedStackError: when there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin") if home else None) or shutil.which("java")
    if found is None:
        raise EmbeddedStackError(f"there is no java. {_NEEDS_JAVA}")
    return Path(found)


def find_jars(directory: Path | None = None) -> Path:
    """The folder of jars: ``directory`` or the default one.

    Raises:
        EmbeddedStackError: when Apache Kafka is not in it.
    """
    directory = directory or default_jars_directory()
    if not any(directory.glob(_SERVER_JAR)):
        raise EmbeddedStackError(
            f"there is no Apache Kafka in {directory}: fetch it with `tailrace kafka install` (needs Java and Maven), "
            "or set TAILRACE_KAFKA_JARS to a folder that holds its jars"
        )
    return directory


def kafka_missing(directory: Path | None = None) -> str | None:
    """Why Apache Kafka cannot be run here, in a sentence; None when it can."""
    try:
        find_java()
        find_jars(directory)
    except EmbeddedStackError as error:
        return str(error)
    return None


def install_kafka(directory: Path | None = None, *, on_output: Callable[[str], None] | None = None) -> Path:
    """Fetch Apache Kafka's jars with Maven, unless they are there. Blocks for seconds to minutes.

    Args:
        directory: where to put them; None: :func:`default_jars_directory`. Other files in it are left alone.
        on_output: called with each line Maven prints, to show progress.

    Returns:
        The folder that holds the jars.

    Raises:
        EmbeddedStackError: without Java or Maven, when the download fails, or when the jars do not run.
    """
    directory = (directory or default_jars_directory()).absolute()
    java = find_java()
    if any(directory.glob(_SERVER_JAR)):
        return directory
    maven = shutil.which("mvn")
    if maven is None:
        raise EmbeddedStackError(
            "there is no mvn: fetching Apache Kafka needs Maven (Debian, Ubuntu: apt-get install maven), "
            f"or copy Apache Kafka {KAFKA_VERSION}'s jars to {directory} yourself"
        )
    directory.mkdir(parents=True, exist_ok=True)
    # Beside the target: the same file system, so that moving is renaming.
    with tempfile.TemporaryDirectory(prefix="installing-", dir=directory.parent) as scratch:
        fetched = Path(scratch) / "libs"
        _run_maven(maven, Path(scratch), fetched, on_output)
        _verify(java, fetched)
        _move(fetched, directory)
    return directory


def _run_maven(maven: str, scratch: Path, target: Path, on_output: Callable[[str], None] | None) -> None:
    pom = scratch / "pom.xml"
    pom.write_bytes(resources.files(__package__).joinpath("pom.xml").read_bytes())
    process = subprocess.Popen(
        [
            *(maven, "-B", "-ntp", "-f", str(pom), "dependency:copy-dependencies"),
            *("-DincludeScope=runtime", f"-DoutputDirectory={target}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last: list[str] = []
    with process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            for line in process.stdout:
                last = [*last[-30:], line.rstrip()]
                if on_output is not None:
                    on_output(line.rstrip())
            process.wait(_MAVEN_TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise EmbeddedStackError(
            f"Maven could not fetch Apache Kafka {KAFKA_VERSION} (exit status {process.returncode}). "
            "Its last output:\n" + "\n".join(last)
        )


def _verify(java: Path, jars: Path) -> None:
    """Let Kafka's own tool make an id: every class it needs to start is there, and Java is new enough."""
    result = subprocess.run(
        [str(java), "-cp", f"{jars}/*", "kafka.tools.StorageTool", "random-uuid"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    if result.returncode != 0:
        raise EmbeddedStackError(
            f"the jars were fetched and do not run. {java_advice(result.stderr)}Output:\n{result.stderr[-2_000:]}"
        )


def java_advice(output: str) -> str:
    """What to do when the JVM is too old, with a trailing space; empty when that is not the trouble."""
    return f"{_NEEDS_JAVA}. " if "UnsupportedClassVersionError" in output else ""


def _move(source: Path, target: Path) -> None:
    """Move the jars, the one that tells that Kafka is there last: an interrupted move is not taken for complete."""
    for jar in sorted(source.glob("*.jar"), key=lambda jar: jar.match(_SERVER_JAR)):
        jar.replace(target / jar.name)
