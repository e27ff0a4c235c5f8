"""qcow2 files as a backend needs them: their headers, qemu-img's verbs, and the chains that they make.

A volume is the file `volume-ID`, an image base `image-ID`. A point in time is a frozen file `layer-ID`
(of the snapshot, or of the volume cloned then) that the files made from it lie over. A snapshot's own
name, `snap-ID`, is a second link to its layer: without it the layer is hidden, and kept only as long
as several files lie over it.

`header` reads what a file says of itself, `links` what all of a pool do, `tool` runs qemu-img, `layers`
makes, checks and takes apart chains, `restore` notes them again. `export` makes a file a block device: a
`daemon` opens it, and `nbd` or `fuse` is the way to a device.
"""
