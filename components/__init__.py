"""What runs in a container: rooms that stand on each other, with a package for each stage on top."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
