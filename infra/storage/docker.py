"""What `docker system df` says of an installation's volumes and images."""

import re
from collections.abc import Collection, Mapping
from typing import Any

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """Return the bytes of a size in Docker's form, such as 1.5GB; 0 where Docker does not know it."""
    match = re.fullmatch(r"([\d.]+)([kMGT]?B)", text)
    return round(float(match[1]) * UNITS[match[2]]) if match else 0


def measure_volumes(docker: Mapping[str, Any], project: str) -> dict[str, int]:
    """Return the bytes of a Compose project's volumes by their names in the compose file."""
    label = f"com.docker.compose.project={project}"
    volumes = [each for each in docker["Volumes"] or [] if label in each["Labels"].split(",")]
    return {each["Name"].removeprefix(f"{project}_"): parse_size(each["Size"]) for each in volumes}


def measure_images(docker: Mapping[str, Any], names: Collection[str]) -> dict[str, int]:
    """Return the bytes of images that no other image of the machine has too, by name."""
    images = {f"{each['Repository']}:{each['Tag']}": each for each in docker["Images"] or []}
    return {name: parse_size(images[name]["UniqueSize"]) for name in names if name in images}


def measure_shared(docker: Mapping[str, Any], names: Collection[str]) -> int:
    """Return the bytes of the layers that images share, at least: those of the image that shares most."""
    images = [each for each in docker["Images"] or [] if f"{each['Repository']}:{each['Tag']}" in names]
    return max((parse_size(each["SharedSize"]) for each in images), default=0)
