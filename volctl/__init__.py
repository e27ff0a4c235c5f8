"""volctl: block volumes on one Linux machine, made by OpenStack Cinder's create-volume pipeline."""

__version__ = "0.1.0"
