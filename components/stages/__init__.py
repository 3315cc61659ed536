"""The stages: one package for each container step. No stage imports another one.

A folder `components/stages/<name>` in any place on Python's path is a stage as well, so that a stage of your own needs
no change of this repository.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
